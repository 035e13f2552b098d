"""Load a fresh merge of MixtureKit and save it, with the routers that loading made: `save_routers.py FOLDER OUT`.

`mixturekit build` stores no routers and `mixturekit export` wants stored ones; this is training, less the training.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out = sys.argv[1:]
torch.manual_seed(0)
AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=True).save_pretrained(out)
AutoTokenizer.from_pretrained(folder).save_pretrained(out)
