"""`smolmoe run`: recipes of several stages."""
