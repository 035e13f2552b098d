"""`smolmoe data teach`: text and log-probabilities from an OpenAI-compatible endpoint."""
