"""Experts and output heads computed fast: one autograd function for all experts, few tokens, large vocabularies."""
