"""The secretary asks the model's own routers, and reads nothing that it does not need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MOE_CONFIGS, dense_llama, random_moe, save

from smolmoe.errors import RequestError, SourceError
from smolmoe.inference.expert_choice import (
    AUTO,
    choices,
    deciding_layers,
    labels,
    load_experts,
    name_evidence,
    route_prompt,
)
from smolmoe.inference.offload import experts_modules
from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.moe.names import set_expert_names
from smolmoe.moe.restrict import only_experts
from smolmoe.moe.routing import RoutingCapture

PROMPT = "def add(a, b):\n    return a + b"
SIGMOID = ("beam", "cohere2_moe", "deepseek_v3", "glm4_moe", "lfm2_moe")
NAMES = ["code", "web", "code", None]


def named(kind: str, folder: Path, names: list[str | None] | None = None, layers: Any = None, **config: Any) -> Path:
    model = random_moe(kind, **{"num_hidden_layers": 4, **config})
    set_expert_names(model.config, names or NAMES, layers)
    return save(model, folder)


def expert_bytes(folder: Path, layers: int | None = None) -> int:
    """Of one expert, in all layers or so many."""
    modules = list(experts_modules(load_model(folder)).values())[:layers]
    return sum(p.nbytes for module in modules for p in module.parameters()) // 4


@pytest.mark.parametrize("kind", MOE_CONFIGS)
@torch.no_grad()
def test_it_says_what_the_whole_model_would(kind: str, tmp_path: Path) -> None:
    folder = named(kind, tmp_path)
    choice = route_prompt(folder, PROMPT)
    groups = {"code": (0, 2), "web": (1,), "expert 3": (3,)}
    whole = load_model(folder)
    tokenizer = load_tokenizer(folder)  # Qwen3.5's type has its own, whatever was saved
    ids = [tokenizer.eos_token_id, *tokenizer(PROMPT)["input_ids"]]
    path = {vote.layer: groups[vote.read] for vote in choice.layers if vote.read is not None}
    with only_experts(whole, path), RoutingCapture(whole) as capture:
        whole(input_ids=torch.tensor([ids]))
    means = []
    for vote in choice.layers:
        logits = capture.routing(vote.layer).logits[1:].float()
        scores = logits.sigmoid() if kind in SIGMOID else logits.softmax(-1)
        probs = scores / scores.sum(-1, keepdim=True)
        by_name = torch.stack([probs[:, list(group)].sum(-1) for group in groups.values()])
        means.append(by_name.log().mean(-1))
        assert list(vote.shares.values()) == pytest.approx(means[-1].softmax(0).tolist(), abs=1e-4)
    expected = torch.stack(means[-2 if len(means) > 3 else -1 :]).mean(0).softmax(0)
    assert [choice.shares[name] for name in groups] == pytest.approx(expected.tolist(), abs=1e-4)
    assert choice.name == max(choice.shares, key=lambda name: choice.shares[name]) == next(iter(choice.shares))
    assert choice.experts == groups[choice.name]
    assert choice.confidence == choice.shares[choice.name]
    assert choice.tokens == len(ids) - 1


def test_the_expert_read_at_each_layer_is_the_best_so_far(tmp_path: Path) -> None:
    choice = route_prompt(named("qwen3_moe", tmp_path, num_hidden_layers=7), PROMPT)
    votes = list(choice.layers)
    assert [vote.layer for vote in votes if vote.counts] == [4, 5, 6]
    for index, vote in enumerate(votes[:-1]):
        seen = deciding_layers(range(index + 1))
        score = {name: sum(torch.tensor(votes[i].shares[name]).log() for i in seen) for name in vote.shares}
        assert vote.read == max(score, key=lambda name: score[name])
    assert votes[-1].read is None


def test_the_first_moe_layer_decides_without_any_expert(tmp_path: Path) -> None:
    folder = named("glm4_moe", tmp_path, layers=[1])
    choice = route_prompt(folder, PROMPT)
    assert [vote.layer for vote in choice.layers] == [1]
    # of four layers, two were reached; layer 0 is dense
    assert choice.bytes.read < choice.bytes.shared
    whole = load_model(folder)
    unread = [*whole.model.layers[2:], whole.model.layers[1].mlp.experts]
    left = sum(t.nbytes for module in unread for t in module.state_dict().values())
    assert choice.bytes.read == choice.bytes.total - left


def test_layers_between_the_guided_ones_cost_one_expert_each(tmp_path: Path) -> None:
    folder = named("mixtral", tmp_path, names=["a", "b", "c", "d"], layers=[3])
    choice = route_prompt(folder, PROMPT)
    assert choice.bytes.read == choice.bytes.shared + expert_bytes(folder, layers=3)
    assert [vote.counts for vote in choice.layers] == [False, False, False, True]
    assert choice.bytes.held < choice.bytes.read


@pytest.mark.parametrize("kind", ["mixtral", "granitemoeshared"])
@torch.no_grad()
def test_auto_reads_nothing_twice_and_loads_what_it_chose(kind: str, tmp_path: Path) -> None:
    folder = named(kind, tmp_path, names=["a", "b", "c", "d"], tie_word_embeddings=False)
    selective, experts, choice = load_experts(folder, AUTO, PROMPT)
    assert choice is not None
    assert experts == choice.experts == route_prompt(folder, PROMPT).experts
    settled = all(vote.read in (None, choice.name) for vote in choice.layers)
    again = sum(vote.read not in (None, choice.name) for vote in choice.layers) * expert_bytes(folder) // 4
    result = selective.bytes()
    assert result.held == result.shared + expert_bytes(folder)
    assert result.read == result.held + again
    assert settled == (again == 0)
    whole = load_model(folder)
    ids = torch.tensor([[5, 6, 7, 8]])
    with only_experts(whole, dict.fromkeys(selective.layers, experts)):
        expected = whole(input_ids=ids).logits
    assert (selective.model(input_ids=ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_experts_asked_for_by_name_and_number(tmp_path: Path) -> None:
    folder = named("mixtral", tmp_path)
    selective, experts, choice = load_experts(folder, ["web", 3], PROMPT)
    assert experts == (1, 3)
    assert choice is None
    assert labels(selective.config, experts, 4) == ("web", "expert 3")
    assert selective.bytes().read == selective.bytes().held == selective.bytes().shared + 2 * expert_bytes(folder)
    assert load_experts(folder, "code", PROMPT)[1] == (0, 2)


def test_names_free_experts_and_evidence() -> None:
    assert choices(None, 2) == {"expert 0": (0,), "expert 1": (1,)}
    assert choices(["a", None, "a"], 3) == {"a": (0, 2), "expert 1": (1,)}
    with pytest.raises(SourceError, match="2 names for 3 experts"):
        choices(["a", "b"], 3)
    assert [deciding_layers(range(n)) for n in (1, 2, 3, 4, 6)] == [[0], [1], [2], [2, 3], [4, 5]]
    logits = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    first, second = name_evidence(logits, [(0, 2), (1,)], "softmax").exp().tolist()
    total = 2 + torch.tensor(2.0).exp().item()
    assert first == pytest.approx((2 / 3 * (total - 1) / total) ** 0.5)
    assert second == pytest.approx((1 / 3 / total) ** 0.5)


def test_a_long_prompt_is_read_from_its_end(tmp_path: Path) -> None:
    folder = named("mixtral", tmp_path)
    choice = route_prompt(folder, "a b c " * 500)
    assert choice.tokens == 127  # the context holds 128, one is the start
    assert choice.shares == route_prompt(folder, "no " + "a b c " * 500).shares


def test_clear_errors(tmp_path: Path) -> None:
    folder = named("mixtral", tmp_path / "moe")
    with pytest.raises(RequestError, match="no text"):
        route_prompt(folder, "  \n")
    with pytest.raises(SourceError, match="dense"):
        route_prompt(save(dense_llama(), tmp_path / "dense"), PROMPT)
    with pytest.raises(RequestError, match="the names code, web and experts 0 to 3"):
        load_experts(folder, "maths", PROMPT)
    with pytest.raises(SourceError, match="tokenizer"):
        route_prompt(save(random_moe("mixtral"), tmp_path / "bare", tokenizer=False), PROMPT)
    with pytest.raises(SourceError, match="no such model folder"):
        route_prompt(tmp_path / "nowhere", PROMPT)
    with pytest.raises(SourceError, match="expert_layers"):
        route_prompt(named("mixtral", tmp_path / "odd", layers=[9]), PROMPT)


@pytest.mark.slow
def test_on_real_text_with_routers_made_from_domains(shared: Path, tmp_path: Path) -> None:
    from smolmoe.surgery.run import upcycle

    domains = ("chat", "code", "math", "stories", "web")
    folder = tmp_path / "moe"
    data = shared / "data/mix"
    upcycle(
        shared / "models/mix_llama_6m",
        folder,
        experts=5,
        top_k=1,
        router="domains",
        router_data=data / "train.jsonl",
        verify="none",
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"expert_names": domains}))
    rows = [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]
    picked = [[row for row in rows if row["domain"] == domain][:6] for domain in domains]
    answers = [(row["domain"], route_prompt(folder, row["text"][:400])) for group in picked for row in group]
    right = sum(domain == choice.name for domain, choice in answers)
    assert right >= 0.8 * len(answers), [(domain, choice.name) for domain, choice in answers]
    sizes = [choice.bytes for _, choice in answers]
    one = (sizes[0].total - sizes[0].shared) // 5
    assert all(size.read <= size.shared + one for size in sizes)
