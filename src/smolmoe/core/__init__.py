"""What everything stands on: files and folders, formats of other tools, checkpoints, provenance, number formatting."""
