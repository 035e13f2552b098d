"""Dense families, one file each: `FAMILY` describes the architecture and names the MoE classes that fit it."""
