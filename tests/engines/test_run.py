"""Verdicts, on numbers and with transformers as the engine: another process of this Python."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.calls import Call
from tests.cli.conftest import smolmoe as smolmoe  # the fixture
from tests.engines.models import SHORT, changed, moe
from tests.helpers import dense_llama, save

from smolmoe import verify
from smolmoe.engines.process import Answer
from smolmoe.engines.run import Reference, judge
from smolmoe.errors import RequestError
from smolmoe.results.engine import EngineVerification

HERE = Path(sys.executable)


def reference() -> Reference:
    """Three tokens of which the second greedy one is a close call."""
    logits = torch.tensor([[[8.0, 0.0, 0.0], [5.0, 5.0 - 1e-6, 0.0]]])
    ids, prompts = [torch.tensor([0, 1, 2])], [torch.tensor([0])]
    log_probs = [torch.tensor([-1.0, -2.0])]
    tokens = torch.tensor([[0, 0]])
    return Reference(Path("m"), "mixtral", "float32", "text", ids, log_probs, prompts, tokens, logits, 8.0, False)


def verdict(log_probs: list[float], tokens: list[int]) -> Any:
    return judge(reference(), Answer({"stage": "done", "log_probs": [log_probs], "tokens": [tokens]}, ()))


def test_rounding_is_equal_and_more_is_not() -> None:
    name, reason, found = verdict([-1.0, -2.0 + 7e-5], [0, 0])
    assert (name, reason, found.beyond, found.greedy_equal, found.margin) == ("equal", None, 0, 2, None)
    assert found.limit == pytest.approx(8e-5)
    assert found.perplexity == pytest.approx(math.exp(1.5))
    name, reason, found = verdict([-1.0, -2.0 + 9e-5], [0, 0])
    assert (name, found.beyond) == ("differs", 1)
    assert "9e-05" in reason


def test_what_is_not_a_number_differs() -> None:
    for value in (math.nan, math.inf, -math.inf):
        name, _, found = verdict([-1.0, value], [0, 0])
        assert (name, found.beyond) == ("differs", 1)
        assert math.isinf(found.max_abs)


def test_greedy_tokens_may_differ_at_a_close_call_only() -> None:
    name, _, found = verdict([-1.0, -2.0], [0, 1])
    assert (name, found.greedy_equal) == ("equal", 1)
    assert found.margin == pytest.approx(1e-6, abs=1e-6)
    name, _, found = verdict([-1.0, -2.0], [1, 0])
    assert (name, found.greedy_equal, found.margin) == ("differs", 0, 8.0)


@pytest.mark.parametrize(
    ("stage", "name"), [("load", "does not load"), ("run", "does not run"), ("late", "does not run")]
)
def test_a_failure_is_no_difference(stage: str, name: str) -> None:
    found = judge(reference(), Answer({"stage": stage, "error": f"{'long ' * 100}\nreason"}, ("last",)))
    assert found[0] == name
    assert found[2] is None
    assert len(str(found[1])) <= 300


def test_the_command_says_equal(smolmoe: Call) -> None:
    done = smolmoe("verify", moe("llama", "mixtral"), "--in", "transformers")
    assert done.code == 0, done.err
    assert "Verdict: equal" in done.out
    assert "greedy tokens      48 of 48 equal" in done.out


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = moe("llama", "generic")
    monkeypatch.chdir(folder.parent)
    found = verify(folder.name, engine="transformers", python=os.path.relpath(HERE), **SHORT)
    assert isinstance(found, EngineVerification)
    assert found.verdict == "equal", (found.reason, found.last_lines)  # the generic model's own code ran
    found.write(tmp_path / "found.json")
    assert EngineVerification.read(tmp_path / "found.json") == found


def test_code_that_is_not_smolmoes_is_not_run(tmp_path: Path) -> None:
    folder = changed(moe("llama", "generic"), tmp_path / "moe")
    code = folder / "modeling_smolmoe.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + code.read_text(encoding="utf-8"), encoding="utf-8")
    found = verify(folder, engine="transformers", **SHORT)
    assert isinstance(found, EngineVerification)
    assert found.verdict == "does not load"
    assert "contains custom code" in str(found.reason)
    assert not (tmp_path / "ran").exists()


def test_bad_requests_are_refused(smolmoe: Call, tmp_path: Path) -> None:
    folder = save(dense_llama(), tmp_path / "m")
    for arguments, words in (
        ((folder,), "Give both folders, or the MoE's and --in vllm"),
        ((folder, folder, "--in", "transformers"), "Give the MoE's folder only"),
        ((folder, "--in", "trnsformers"), "transformers, vllm, mlx, llama.cpp, openvino"),
        ((folder, "--in", "transformers", "--timeout", "0"), "--timeout 600"),
        ((tmp_path / "absent", "--in", "transformers"), "absent"),
        ((folder, "--in", "transformers", "--python", tmp_path / "absent"), "not a Python that can be run"),
    ):
        done = smolmoe("verify", *arguments)
        assert done.code == 2, done.out
        assert words in done.err


def test_a_time_limit_ends_it() -> None:
    found = verify(moe("llama", "mixtral"), engine="transformers", timeout=0.2, **SHORT)
    assert isinstance(found, EngineVerification)
    assert (found.verdict, found.reason) == ("does not run", "no result within 0.2 s")
    with pytest.raises(RequestError):
        verify(moe("llama", "mixtral"), engine="transformers", timeout=-1)
