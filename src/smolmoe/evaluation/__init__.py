"""Measurements of a model: held-out loss, FLOPs, memory, speed, corrections, and comparisons of several models."""
