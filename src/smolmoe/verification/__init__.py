"""Proofs on saved files: `verify` compares an MoE with its dense source, `doctor` examines the routers."""
