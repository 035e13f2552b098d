"""A teacher over HTTP: ask it many prompts, lose no answer, pay for none twice."""
