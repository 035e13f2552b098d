"""Sources as people have them (GGUF files, multimodal models, fp8 weights) as plain checkpoint folders."""
