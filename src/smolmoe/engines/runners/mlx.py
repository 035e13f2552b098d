"""mlx-lm, Apple's; on Linux with the CPU backend of MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VARIABLE = "SMOLMOE_ENGINE_MLX"  # names its Python
MODULE = "mlx_lm"
PACKAGES = ("mlx-lm",)
AT_LEAST = "0.32"
INSTALL = 'pip install "mlx-lm[cpu]"'
NOTES = (
    "Its CPU backend does not run experts in bfloat16: weights are converted to float32 after loading.",
    "It reads a `rope_theta` at the top of config.json, not `rope_parameters`.",
)


def load(job: dict[str, Any]) -> Any:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(job["model"]))
    model.set_dtype(mx.float32)
    return model


def measure(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache

    def score(ids: list[int]) -> list[float]:
        # In float64: mx.logsumexp over a large vocabulary loses more than the model's rounding.
        logits = np.array(model(mx.array([ids]))[0, :-1], dtype=np.float64)
        largest = logits.max(axis=-1)
        chosen = logits[np.arange(len(logits)), ids[1:]]
        scores: list[float] = (chosen - largest - np.log(np.exp(logits - largest[:, None]).sum(axis=-1))).tolist()
        return scores

    def continued(ids: list[int]) -> list[int]:
        cache, new, latest = make_prompt_cache(model), [], ids
        for _ in range(job["new_tokens"]):
            latest = [mx.argmax(model(mx.array([latest]), cache=cache)[0, -1]).item()]
            new += latest
        return new

    return {"log_probs": list(map(score, job["sequences"])), "tokens": list(map(continued, job["prompts"]))}
