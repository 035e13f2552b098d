"""The MoE itself: the generic model, routing, and running models larger than memory."""

from __future__ import annotations


def register() -> None:
    """Make the generic model known to transformers' Auto classes, so that it loads without remote code.

    Explicit, since it changes what other libraries do in this process. Calling it again changes nothing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    AutoConfig.register(SmolMoeConfig.model_type, SmolMoeConfig, exist_ok=True)
    AutoModelForCausalLM.register(SmolMoeConfig, SmolMoeForCausalLM, exist_ok=True)
