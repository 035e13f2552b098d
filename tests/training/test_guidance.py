"""Experts by name: what routers learn, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_moe, save
from safetensors.torch import load_file
from tests.training.runs import dense_folder, moe_folder, recipe, rows, trainer, write_text

from smolmoe.errors import DataError, RequestError
from smolmoe.moe.names import expert_names, named_layers
from smolmoe.moe.routing import find_routers
from smolmoe.recipe.train import GuidanceRecipe
from smolmoe.training.guidance import resolve
from smolmoe.training.run import train

DOMAINS = {"code": (0, 2), "prose": (1, 3)}


def tagged(path: Path) -> Path:
    """Two domains whose words differ, so that routers can tell them apart."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(80):
            word, domain = (("return def ", "code"), ("everyone can ", "prose"))[number % 2]
            file.write(json.dumps({"text": f"{number} " + word * 15, "domain": domain}) + "\n")
    return path


def guided(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    tagged(folder / "text.jsonl")
    changes = {"guidance": {"weight": 2.0, "experts": DOMAINS}, "trainer": trainer(max_steps=80)} | changes
    return recipe(folder, model, **changes)


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe"])
def test_routers_learn_the_names_while_the_rest_stands_still(tmp_path: Path, kind: str) -> None:
    model = save(random_moe(kind), tmp_path / "moe")
    result = train(guided(tmp_path, model, trainable="routers"))
    windows = rows(result.out, "window")
    assert min(windows[-1]["routing_accuracy"]) > 0.9 > max(windows[0]["routing_accuracy"])
    config = json.loads((result.model / "config.json").read_text())
    assert config["expert_names"] == ["code", "prose", "code", "prose"]
    before, after = load_file(model / "model.safetensors"), load_file(result.model / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("gate.weight" in name or "router" in name for name in changed), changed


def test_the_next_stage_takes_the_names_from_the_model_and_trains_everything(tmp_path: Path) -> None:
    first = train(guided(tmp_path, moe_folder(tmp_path / "moe"), trainable="routers"))
    values = guided(tmp_path, first.model, guidance={"weight": 1.0}, out=str(tmp_path / "second"))
    second = train(values)
    assert json.loads((second.model / "config.json").read_text())["expert_names"] == ["code", "prose", "code", "prose"]
    before, after = load_file(first.model / "model.safetensors"), load_file(second.model / "model.safetensors")
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert min(rows(second.out, "window")[-1]["routing_accuracy"]) > 0.9


def test_chosen_layers_alone_are_guided(tmp_path: Path) -> None:
    guidance = {"weight": 2.0, "experts": DOMAINS, "layers": [1]}
    result = train(guided(tmp_path, moe_folder(tmp_path / "moe"), guidance=guidance, trainable="routers"))
    last = rows(result.out, "window")[-1]
    assert len(last["routing_accuracy"]) == 1
    assert last["routing_accuracy"][0] > 0.8
    assert json.loads((result.model / "config.json").read_text())["expert_layers"] == [1]


def test_free_experts_take_any_token_and_reserved_ones_hardly_any(tmp_path: Path) -> None:
    values = guided(
        tmp_path,
        save(random_moe("mixtral"), tmp_path / "moe"),
        guidance={"weight": 2.0, "experts": {"code": [0], "prose": [1]}, "free": [2]},
        routing={"reserved": [3]},
        objective={"load_balance": 0.05},
        trainable="routers",
    )
    result = train(values)
    config = json.loads((result.model / "config.json").read_text())
    assert config["expert_names"] == ["code", "prose", None, None]
    assert min(rows(result.out, "window")[-1]["routing_accuracy"]) > 0.9
    model = random_moe("mixtral")
    model.load_state_dict({**model.state_dict(), **_stock(result.model)})
    from smolmoe.moe.routing import RoutingCapture

    with torch.no_grad(), RoutingCapture(model) as capture:
        model(torch.randint(2, 300, (4, 32), generator=torch.Generator().manual_seed(0)))
    load = torch.stack([capture.routing(layer).logits.softmax(-1).mean(0) for layer in capture.layers]).mean(0)
    assert load[2] > 3 * load[3]  # K = 2: a domain's own expert, and the free one rather than the reserved


def _stock(folder: Path) -> dict[str, torch.Tensor]:
    from smolmoe.moe.loading import load_model

    return load_model(folder).state_dict()


def test_guidance_is_the_same_over_micro_batches(tmp_path: Path) -> None:
    model = moe_folder(tmp_path / "moe")
    balance = {"load_balance": 0.1}
    whole = train(guided(tmp_path, model, objective=balance, trainer=trainer(max_steps=3), out=str(tmp_path / "a")))
    parts = trainer(max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    split = train(guided(tmp_path, model, objective=balance, trainer=parts, out=str(tmp_path / "b")))
    first, second = rows(whole.out, "step")[0], rows(split.out, "step")[0]
    assert second["guidance"] == pytest.approx(first["guidance"], rel=1e-5)
    assert first["guidance"] > 0.1


def test_a_resumed_run_goes_on_alike(tmp_path: Path) -> None:
    model = moe_folder(tmp_path / "moe")
    steps = trainer(max_steps=8, save_steps=4, lr_scheduler_type="constant")
    whole = train(guided(tmp_path, model, trainable="routers", trainer=steps, out=str(tmp_path / "a")))
    half = {**steps, "max_steps": 4}
    train(guided(tmp_path, model, trainable="routers", trainer=half, out=str(tmp_path / "b")))
    resumed = train(
        guided(tmp_path, model, trainable="routers", trainer=steps, out=str(tmp_path / "b")), resume="latest"
    )
    assert rows(resumed.out, "step")[4:] == rows(whole.out, "step")[4:]


def test_domains_count_alike_however_little_text_they_have() -> None:
    shares = {"a": 0.75, "b": 0.25, "only measured": 0.0}
    recipe = GuidanceRecipe(experts={"a": (0, 1), "b": (2, 3)}, evenness=1)
    found = resolve(recipe, random_moe("mixtral"), shares)
    weights = found.token_weights
    assert weights.tolist() == pytest.approx([2 / 3, 2, 0])
    logits = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0] * 6 + [1] * 2)
    a, b = (found.term(logits[:, ids == d], ids[ids == d], "softmax") / weights[d] for d in (0, 1))
    torch.testing.assert_close(found.term(logits, ids, "softmax"), (a + b) / 2)
    alike = resolve(recipe.model_copy(update={"evenness": 0.0}), random_moe("mixtral"), shares)
    assert alike.token_weights.tolist() == [1, 1, 0]
    between = resolve(recipe.model_copy(update={"evenness": 0.5}), random_moe("mixtral"), shares).token_weights
    assert between[1] / between[0] == pytest.approx(3**0.5)
    assert 0.75 * between[0] + 0.25 * between[1] == pytest.approx(1)


def test_a_bias_is_held_against_experts_of_the_same_name() -> None:
    model = random_moe("mixtral")
    found = resolve(GuidanceRecipe(experts={"a": (0, 1)}, free=(2,)), model, {"a": 1.0}, reserved=[3])
    load = torch.tensor([[0.3, 0.1, 0.6, 0.0]])
    torch.testing.assert_close(found.mean_load(load), torch.tensor([[0.2, 0.2, 0.6, 0.0]]))
    assert expert_names(model.config) == ("a", "a", None, None)
    assert named_layers(model.config) is None


@pytest.mark.parametrize(
    ("guidance", "domains", "field", "says"),
    [
        ({}, ["a", "b"], "guidance.experts", "a: [0], b: [1]"),
        ({"experts": {"a": [0], "b": [1]}}, ["a", "b"], "guidance.experts", "2, 3"),
        ({"experts": {"a": [0, 1], "b": [2, 7]}}, ["a", "b"], "guidance.experts", "0 to 3"),
        ({"experts": {k: [i] for i, k in enumerate("abcde")}}, list("abcde"), "guidance.experts", "more domains"),
        ({"experts": {"a": [0, 1], "b": [2, 3]}}, ["a"], "guidance.experts", "no rows"),
        ({"experts": {"a": [0, 1, 2, 3]}}, ["a", "b"], "guidance.experts", "a domain without experts"),
        ({"experts": {"a": [0, 1, 2, 3]}}, ["a", "text"], "data.sources", "without a domain"),
        ({"experts": {"a": [0, 1], "b": [2, 3]}, "layers": [5]}, ["a", "b"], "guidance.layers", "0, 1"),
        ({"experts": {"a": [0, 1], "b": [2, 3]}, "floor": 0.5}, ["a", "b"], "guidance.floor", "leave nothing"),
    ],
)
def test_what_does_not_fit_is_refused(guidance: Any, domains: list[str], field: str, says: str) -> None:
    with pytest.raises((RequestError, DataError)) as caught:
        resolve(GuidanceRecipe(**guidance), random_moe("mixtral"), dict.fromkeys(domains, 1 / len(domains)))
    assert caught.value.field == field
    assert says in str(caught.value)


@pytest.mark.parametrize("experts", [{"a": [0], "b": [0]}, {"a": []}])
def test_an_expert_has_one_domain_and_a_domain_an_expert(experts: Any) -> None:
    with pytest.raises(ValueError, match=r"given twice|has no expert"):
        GuidanceRecipe(experts=experts)


def test_a_dense_model_has_nothing_to_guide(tmp_path: Path) -> None:
    dense = dense_folder(tmp_path / "dense")
    for changes in ({}, {"guidance": None, "trainable": "routers"}):
        with pytest.raises(RequestError, match="dense"):
            train(guided(tmp_path, dense, **changes))


def test_balance_has_nothing_to_do_where_every_domain_has_one_expert(tmp_path: Path) -> None:
    model = moe_folder(tmp_path / "moe")
    guidance = {"experts": {"code": [0], "prose": [1]}}
    values = guided(tmp_path, model, guidance=guidance, routing={"reserved": [2, 3]}, objective={"load_balance": 0.1})
    with pytest.raises(RequestError, match="nothing to balance"):
        train(values)


def test_rows_without_a_domain_are_found_before_training(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    with (tmp_path / "text.jsonl").open("a") as file:
        for number in range(10):
            file.write(json.dumps({"text": f"nobody knows what {number} is about"}) + "\n")
    values = recipe(tmp_path, moe_folder(tmp_path / "moe"), guidance={"experts": DOMAINS})
    with pytest.raises(DataError, match="without a domain"):
        train(values)
    assert len(find_routers(random_moe("mixtral"))) == 2


def test_routers_that_nothing_trains_are_refused(tmp_path: Path) -> None:
    model = moe_folder(tmp_path / "moe", top_k=1)
    with pytest.raises(RequestError, match="does not train the routers") as refused:
        train(recipe(tmp_path, model, trainable="routers"))
    assert refused.value.field == "trainable"
    assert not (tmp_path / "run").exists()
