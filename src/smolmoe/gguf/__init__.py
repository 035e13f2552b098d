"""GGUF files: what llama.cpp can compute, its own converter, and llama.cpp itself."""
