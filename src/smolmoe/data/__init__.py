"""Text to train on: sources, presets and formats, documents, tokens on disk, blocks."""
