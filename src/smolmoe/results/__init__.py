"""What commands find: typed results, as they are written to JSON and read back."""
