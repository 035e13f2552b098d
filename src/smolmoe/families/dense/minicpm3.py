"""MiniCPM3: DeepSeek's latent attention, multipliers of the embedding, the residual branches and the logits."""

from __future__ import annotations

import math

from smolmoe.families.adapt import Adaptation, scaled, untied
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.dense.youtu import neighbours
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    """The stream is divided by the factor r of the residual branches, which its norms see only in their epsilon.

    h + r f(norm(h)) = r (g + f(norm(g))) for h = r g, if epsilon is divided by r^2.
    """
    config, rotary = spec.config, neighbours(spec)
    branch = config["scale_depth"] / math.sqrt(spec.layers)
    return Adaptation(
        changes=(
            *rotary.changes,
            untied,
            scaled("embed_tokens.weight", by=config["scale_emb"] / branch),
            scaled("lm_head.weight", by=config["dim_model_base"] / spec.hidden_size),
        ),
        config={
            **rotary.config,
            "rms_norm_eps": config["rms_norm_eps"] / branch**2,
            "tie_word_embeddings": False,
        },
    )


FAMILY = DenseFamily(
    model_type="minicpm3",
    examples="MiniCPM3-4B",
    mlp=LLAMA_MLP,
    targets=("deepseek_v3",),
    attention_bias="config",
    mlp_bias="mlp_bias",
    adapt=_adapt,
    by_class=True,
)
