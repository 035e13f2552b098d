"""Serving engines: a model folder run by the tool that will serve it, and compared with transformers."""
