"""`smolmoe export`: an MoE as another native class with the same function, or as a GGUF file."""
