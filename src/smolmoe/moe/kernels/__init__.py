"""Fast experts and output heads: one autograd function for all experts, few tokens, large vocabularies."""
