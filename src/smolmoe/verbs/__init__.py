"""What smolmoe does: one public function for each command, taking a recipe or its fields, returning a typed result.

Importing these modules costs nothing: what does the work is imported when a function is called. Signatures are the
one place that says names, defaults and meanings: the command line and docs/api.md are made from them.
"""
