"""The results of commands, as typed models that are written to JSON and read back."""
