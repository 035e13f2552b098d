"""Experts taken out of an MoE, put in, and merged: `extract`, `prune`, `merge-experts`, `add-expert`."""
