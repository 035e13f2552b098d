"""Convert a dense checkpoint to an MoE, file to file: plan, program, writer."""
