"""Shared neurons that are ranked on text: the right ones, copied exactly, and found again without the text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.surgery.test_identity import stock_results
from tests.surgery.test_moments import state_of_weights
from tests.surgery.test_request import plan

from smolmoe import upcycle
from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.data.text import default_documents, encode
from smolmoe.errors import CheckpointError, DataError
from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.surgery.convert import convert
from smolmoe.surgery.moments import carry_moments, plan_of
from smolmoe.surgery.plan import Plan, make_plan
from smolmoe.surgery.shared_neurons import SEQUENCES, from_hex, rank_neurons, to_hex

W = 16


def drawn(seed: int) -> dict[int, tuple[int, ...]]:
    """Other neurons in every layer, few of which follow each other."""
    rng = random.Random(seed)
    return {layer: tuple(sorted(rng.sample(range(zoo.F), W))) for layer in range(zoo.LAYERS)}


def planned(name: str, out: Path, seed: int, **options: Any) -> Plan:
    first = plan(name, shared=W, shared_by="importance", **options)
    object.__setattr__(first.recipe, "out", out)
    return make_plan(first.recipe, open_checkpoint(first.recipe.source), shared_neurons=drawn(seed))


REQUESTS: dict[str, dict[str, Any]] = {
    "copies": {"experts": 4},
    "split": {"experts": 4, "granularity": 2, "target": "generic"},
    "independent": {"experts": 4, "top_k": 1, "gates": "independent", "router": "zero"},
}


@pytest.mark.parametrize("name", ["llama", "llama_mlp_bias", "qwen2", "qwen3", "gpt2", "phi3", "olmo"])
def test_any_neurons_keep_the_function(name: str, tmp_path: Path) -> None:
    """Biases, transposed and fused projections and centred ones included."""
    pairs = {
        key: (zoo.folder(name), convert(planned(name, tmp_path / key, seed, **options)))
        for seed, (key, options) in enumerate(REQUESTS.items())
    }
    for key, found in stock_results(pairs, tmp_path).items():
        assert max(found["plain"], found["padded"], found["cached"]) <= 1e-5, (key, found)


def test_the_shared_expert_holds_them(tmp_path: Path) -> None:
    made = planned("qwen3", tmp_path / "moe", 1, experts=4, target="generic")
    moe, dense = load_model(convert(made)), load_model(zoo.folder("qwen3"))
    for layer, neurons in drawn(1).items():
        shared = moe.lm.model.layers[layer].mlp.shared_expert
        mlp = dense.model.layers[layer].mlp
        assert torch.equal(shared.down_proj.weight, mlp.down_proj.weight[:, list(neurons)])
        assert torch.equal(shared.gate_up_proj.weight[W:], mlp.up_proj.weight[list(neurons)])


def activations(folder: Path, sequences: list[list[int]]) -> dict[int, torch.Tensor]:
    """What each layer's down projection reads, [T, F]."""
    model = load_model(folder)
    seen: dict[int, list[torch.Tensor]] = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.register_forward_pre_hook(
            lambda _, args, index=index: seen.setdefault(index, []).append(args[0][0])
        )
    with torch.no_grad():
        for ids in sequences:
            model(torch.tensor([ids]))
    return {index: torch.cat(parts) for index, parts in seen.items()}


@pytest.mark.parametrize("by", ["importance", "rate"])
def test_the_ranking(by: str) -> None:
    made = plan("llama", shared=W, shared_by=by, layers="1-2", target="generic")
    folder = zoo.folder("llama")
    tokenizer = load_tokenizer(folder)
    found = rank_neurons(made, tokenizer)
    sequences = encode(tokenizer, default_documents(), length=128, count=SEQUENCES)
    assert found.tokens == sum(map(len, sequences))
    assert set(found.neurons) == set(found.held) == {1, 2}
    hidden = activations(folder, sequences)
    for layer in (1, 2):
        size = hidden[layer].abs()
        down = load_model(folder).model.layers[layer].mlp.down_proj.weight.detach()
        if by == "importance":
            score = size.mean(0) * down.norm(dim=0)
        else:
            tenth = zoo.F // 10
            score = (size >= size.topk(tenth, dim=1).values[:, -1:]).float().mean(0)
        best = score.topk(W)
        # Not their indices: several neurons may be active on as many tokens as the last one.
        assert sorted(score[list(found.neurons[layer])].tolist(), reverse=True) == best.values.tolist()
        assert found.held[layer] == pytest.approx(float(best.values.sum() / score.sum()), rel=1e-3)


def test_other_text_other_neurons(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(zoo.folder("llama"))
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "a a a a a a a a " * 50}) + "\n")
    usual = rank_neurons(plan("llama", shared=W, shared_by="importance"), tokenizer)
    other = rank_neurons(
        plan("llama", shared=W, shared_by="importance", calibration=tmp_path / "text.jsonl"), tokenizer
    )
    assert usual.neurons != other.neurons
    with pytest.raises(DataError, match="no such file"):
        rank_neurons(plan("llama", shared=W, shared_by="importance", calibration=tmp_path / "missing.jsonl"), tokenizer)


@pytest.mark.parametrize("neurons", [(0,), (3, 4, 5, 47), tuple(range(1, 48, 2)), (14335,)])
def test_as_text_and_back(neurons: tuple[int, ...]) -> None:
    assert from_hex(to_hex({3: neurons, 11: (0, 1)})) == {3: neurons, 11: (0, 1)}


def test_the_plan_and_the_moments_are_found_again(tmp_path: Path) -> None:
    """Without the text, which may have changed."""
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "one two three four five " * 30}) + "\n")
    result = upcycle(
        zoo.folder("qwen3"),
        tmp_path / "moe",
        experts=4,
        top_k=1,
        shared=24,
        shared_by="rate",
        calibration=text,
        gates="independent",
        router="zero",
    )
    assert result.claim.kind == "exact"
    assert result.verification is not None
    assert result.verification.passed
    assert result.to_json()["shared_neurons"]["by"] == "rate"
    text.unlink()
    found = plan_of(tmp_path / "moe")
    assert found.tensors == result.plan.tensors
    assert found.config == result.plan.config
    state = state_of_weights(load_model(zoo.folder("qwen3")))
    loaded = dict(load_model(tmp_path / "moe").named_parameters())
    carried = carry_moments(found, state)
    for name, moments in carried.items():
        factor = 1 / 4 if ".experts." in name else 1.0
        torch.testing.assert_close(moments.exp_avg, factor * loaded[name], msg=name)


def test_a_plan_without_its_neurons_is_refused(tmp_path: Path) -> None:
    convert(planned("llama", tmp_path / "moe", 1))
    file = tmp_path / "moe" / "smolmoe.json"
    provenance = json.loads(file.read_text())
    del provenance["layout"]["shared_neurons"]
    file.write_text(json.dumps(provenance))
    with pytest.raises(CheckpointError, match="lacks the shared neurons"):
        plan_of(tmp_path / "moe")
