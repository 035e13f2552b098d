"""The tensor program: the origin of every output tensor's values, and how they are written."""
