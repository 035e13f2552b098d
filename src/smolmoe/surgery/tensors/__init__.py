"""The tensor program: for every output tensor, where its values come from, and how they are written."""
