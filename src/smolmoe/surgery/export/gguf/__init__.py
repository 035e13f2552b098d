"""GGUF files: which llama.cpp class computes an MoE, conversion, and a measured run."""
