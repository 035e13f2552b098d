"""`smolmoe bench`: speed, memory and FLOPs of a checkpoint."""
