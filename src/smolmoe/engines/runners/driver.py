"""Measure a model with one engine: `python -I driver.py RUNNER JOB OUT`, in the Python that has the engine.

Writes JSON with the key "stage": "absent" or "old" (of the engine), "load" or "run" (it failed there, with "error"),
or "done", with "log_probs" of each next token, [S-1] per sequence, and greedy "tokens", [N] per prompt.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import traceback
from importlib import metadata
from typing import Any


def run(runner: Any, job: dict[str, Any]) -> dict[str, Any]:
    """What the engine's runner finds, or where and why it stops."""
    version = next((found for found in map(_version, runner.PACKAGES) if found is not None), None)
    found: dict[str, Any] = {"version": version}
    if version is None:
        return {**found, "stage": "absent"}
    if _numbers(version) < _numbers(runner.AT_LEAST):
        return {**found, "stage": "old"}
    stage = "load"
    try:
        model = runner.load(job)
        stage = "run"
        return {**found, **getattr(runner, "measure", measure_causal_lm)(model, job), "stage": "done"}
    except Exception as error:  # engines raise everything
        traceback.print_exc()
        return {**found, "stage": stage, "error": f"{type(error).__name__}: {error}"}


def measure_causal_lm(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The measurement of a model with the interface of transformers."""
    import torch
    from transformers import GenerationConfig

    log_probs, tokens = [], []
    model.generation_config = GenerationConfig()  # what the folder's asks for (an end token, penalties) blurs it
    settings = GenerationConfig(max_new_tokens=job["new_tokens"], do_sample=False, pad_token_id=0)
    with torch.no_grad():
        for ids in (torch.tensor([sequence]) for sequence in job["sequences"]):
            scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].log_softmax(-1)
            log_probs.append(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())
        for ids in (torch.tensor([prompt]) for prompt in job["prompts"]):
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            tokens.append(out[0, ids.shape[1] :].tolist())
    return {"log_probs": log_probs, "tokens": tokens}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def main(path: str, job: str, out: str) -> None:
    spec = importlib.util.spec_from_file_location("runner", path)
    assert spec is not None
    assert spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    with open(job, encoding="utf-8") as file:
        found = run(runner, json.load(file))
    with open(f"{out}.part", "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(f"{out}.part", out)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an engine's threads may hang or crash at exit; everything is written


if __name__ == "__main__":
    main(*sys.argv[1:])
