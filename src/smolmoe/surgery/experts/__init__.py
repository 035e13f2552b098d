"""Extract, remove, merge and add experts of an MoE: `extract`, `prune`, `merge-experts`, `add-expert`."""
