"""`smolmoe export`: an MoE as another native class that computes the same, or as a GGUF file."""
