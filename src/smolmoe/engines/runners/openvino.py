"""OpenVINO, through optimum-intel, which converts the model as it loads it."""

from __future__ import annotations

from typing import Any

VARIABLE = "SMOLMOE_ENGINE_OPENVINO"  # names its Python
MODULE = "openvino"
PACKAGES = ("optimum-intel",)
AT_LEAST = "2.2"
INSTALL = "pip install openvino optimum-intel"
NOTES = (
    "Weights, KV cache and computation are set to float32; by default it rounds all of them.",
    "It reads the model with the older transformers in its environment.",
)


def load(job: dict[str, Any]) -> Any:
    from optimum.intel import OVModelForCausalLM

    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    options = {"export": True, "load_in_8bit": False, "ov_config": exact, "trust_remote_code": job["trust"]}
    return OVModelForCausalLM.from_pretrained(job["model"], **options)
