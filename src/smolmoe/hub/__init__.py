"""Publishing: model cards, and `push`."""
