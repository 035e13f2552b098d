"""From a dense checkpoint to an MoE, from file to file: plan, program, writer."""
