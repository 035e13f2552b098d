"""What is published: model cards, and `push`."""
