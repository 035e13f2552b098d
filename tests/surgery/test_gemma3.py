"""Gemma 3 becomes Beam: what is exact, what only up to the norms' epsilon, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import save
from tests.surgery.test_identity import stock_results

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.convert import convert
from smolmoe.surgery.plan import Plan, make_plan


def _plan(source: Path, out: Path, **options: Any) -> Plan:
    recipe = UpcycleRecipe(source=str(source), out=out, experts=4, **options)
    return make_plan(recipe, open_checkpoint(source))


def test_the_claim_states_what_the_norms_do_not_undo(tmp_path: Path) -> None:
    made = _plan(zoo.folder("gemma3"), tmp_path / "moe")
    assert made.target.name == "beam"
    assert made.claim.kind == "exact"
    assert "up to 7 times as much" in made.claim.reason
    assert "3.0e-06" in made.claim.reason


def test_16_bits_are_claimed_to_be_rounded(tmp_path: Path) -> None:
    made = _plan(zoo.folder("gemma3", dtype="bfloat16"), tmp_path / "moe")
    assert made.claim.kind == "rounded"
    assert "embed_tokens" in made.claim.reason
    assert "input_layernorm" in made.claim.reason
    assert "times as much" in made.claim.reason


def test_a_large_epsilon_shows_in_the_logits(tmp_path: Path) -> None:
    """The stated limit is real: it grows with the epsilon."""
    pairs = {}
    for eps in (1e-6, 1e-2):
        source = save(zoo.build("gemma3", rms_norm_eps=eps), tmp_path / f"dense{eps}")
        pairs[str(eps)] = (source, convert(_plan(source, tmp_path / f"moe{eps}")))
    found = stock_results(pairs, tmp_path)
    assert found["1e-06"]["plain"] <= 1e-5 < 1e-4 < found["0.01"]["plain"]


def test_bidirectional_attention_stays_generic(tmp_path: Path) -> None:
    source = save(zoo.build("gemma3", use_bidirectional_attention=True), tmp_path / "dense")
    assert _plan(source, tmp_path / "moe").target.name == "generic"


@pytest.mark.slow
def test_the_real_gemma_keeps_its_function(gemma3: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = convert(_plan(gemma3, tmp_path / "moe", dtype="float32"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The Industrial Revolution began in Great Britain. By the mid-18th century, Britain was the leading"
    ids = tokenizer(text, return_tensors="pt").input_ids
    logits, tokens = [], []
    for each in (gemma3, folder):
        model = AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(ids).logits)
            tokens.append(model.generate(ids, max_new_tokens=16, do_sample=False))
    assert type(model).__name__ == "BeamForCausalLM"
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * logits[0].abs().max()
    assert torch.equal(tokens[0], tokens[1])
