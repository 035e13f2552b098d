"""The public functions of smolmoe, one for each command: they take a recipe or its fields, and return a typed result.

Importing these modules is cheap: the code that does the work is imported when a function is called. Names, defaults and
meanings are written once, in the signatures; the command line and docs/reference/api.md are made from them.
"""
