"""One file per engine, run by that engine's Python: what the engine needs, how it loads a model and measures it.

The files import nothing of smolmoe, and their engine only inside functions, so that both Pythons can import them.
A job is {"model": path, "sequences": [[id]], "prompts": [[id]], "new_tokens": N, "trust": run the folder's code}.
"""
