"""What the tests of engines share: models that every engine can run, and one engine on another folder's reference."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests import zoo
from tests.helpers import save
from tests.scratch import new_folder

import smolmoe
from smolmoe.engines.process import find_python, run_engine
from smolmoe.engines.registry import runner_of
from smolmoe.engines.run import GGUF_ENGINE, Reference, as_gguf, gguf_converter, judge
from smolmoe.errors import RequestError
from smolmoe.results.engine import EngineDifference, EngineVerification

# On a CPU vLLM needs heads whose width is a multiple of 32; mlx-lm's Mixtral needs D / heads.
SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192}
THETA = 10_000.0
SHORT: dict[str, Any] = {"sequences": 2, "length": 48}


@functools.cache
def moe(source: str, target: str) -> Path:
    """An MoE of the zoo whose experts differ, as `upcycle` writes it."""
    work = new_folder(f"engine-{source}-{target}")
    dense = save(zoo.build(source, **SIZES), work / "dense")
    different = {"experts": 4, "top_k": 2, "diversify": "noise", "noise_std": 0.2}
    smolmoe.upcycle(dense, work / "moe", target=target, verify="none", **different)
    return work / "moe"


def changed(folder: Path, out: Path, **settings: Any) -> Path:
    """A copy of a model with other settings in config.json."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return out


def with_wrong_theta(folder: Path, out: Path) -> Path:
    """A copy that rotates by another angle, wherever an engine reads it."""
    rope = {"rope_type": "default", "rope_theta": 50 * THETA}
    return changed(folder, out, rope_parameters=rope, rope_theta=50 * THETA)


def check_present(engine: str) -> None:
    """Skip the test if this machine does not have the engine."""
    try:
        find_python(engine, runner_of(engine), None)
        if engine == GGUF_ENGINE:
            gguf_converter()
    except RequestError as error:
        pytest.skip(f"{engine}: {error.message} {error.fix}")


def check_equal(engine: str, folder: Path) -> None:
    """The engine computes what transformers does."""
    check_present(engine)
    found = smolmoe.verify(folder, engine=engine, **SHORT)
    assert isinstance(found, EngineVerification)
    assert found.verdict == "equal", (found.reason, found.last_lines)
    assert found.difference is not None
    assert found.difference.beyond == 0
    assert found.difference.greedy_equal == found.difference.greedy_tokens == 32
    assert found.difference.perplexity == pytest.approx(found.difference.engine_perplexity, rel=1e-4)
    assert found.engine_version


def check_difference_is_found(engine: str, folder: Path, tmp_path: Path) -> EngineDifference:
    """The engine on a folder with a wrong theta, against transformers on the right one."""
    check_present(engine)
    wrong = with_wrong_theta(folder, tmp_path / "wrong")
    reference = Reference.of(folder, None, SHORT["sequences"], SHORT["length"], 16, "cpu", 0)
    if engine == GGUF_ENGINE:
        wrong, refusal = as_gguf(wrong, tmp_path, gguf_converter())
        assert refusal is None
    runner = runner_of(engine)
    answer = run_engine(
        find_python(engine, runner, None), runner, {"model": str(wrong), **reference.job(16)}, timeout=600
    )
    verdict, reason, difference = judge(reference, answer)
    assert verdict == "differs", (reason, answer.last_lines)
    assert difference is not None
    assert difference.max_abs > 1000 * difference.limit
    return difference
