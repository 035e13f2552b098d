"""The MoE itself: the generic model, routing, and running models larger than memory."""

from __future__ import annotations


def register() -> None:
    """Register two things with transformers: the generic model, so that it loads without remote code, and our experts
    implementation, so that any MoE runs with `experts_implementation="smolmoe"`.

    Explicit, since it affects other libraries in this process. Calling it again has no effect.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM, SmolMoeModel
    from smolmoe.moe.kernels.register import register_experts

    AutoConfig.register(SmolMoeConfig.model_type, SmolMoeConfig, exist_ok=True)
    AutoModel.register(SmolMoeConfig, SmolMoeModel, exist_ok=True)
    AutoModelForCausalLM.register(SmolMoeConfig, SmolMoeForCausalLM, exist_ok=True)
    register_experts()
