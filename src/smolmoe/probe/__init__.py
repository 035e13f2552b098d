"""What the experts of a mixture do: who is chosen for what, whether that can be told apart, and whether it pays."""
