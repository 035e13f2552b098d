"""transformers, of any version: the one that a checkpoint is loaded with elsewhere."""

from __future__ import annotations

from typing import Any

VARIABLE = "SMOLMOE_ENGINE_TRANSFORMERS"  # names its Python
MODULE = "transformers"
PACKAGES = ("transformers",)
AT_LEAST = "4.56"
INSTALL = "pip install transformers torch"
NOTES = ("Versions before 5 do not read `rope_parameters`, only a `rope_theta` at the top of config.json.",)


def load(job: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    trust = job["trust"]
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, trust_remote_code=trust).eval()
