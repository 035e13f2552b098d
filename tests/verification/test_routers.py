"""What is said of routers before a training: the doctor's findings, by the doctor's rule."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dense_llama, hash_routed, moe_of, random_moe, save
from tests.alignment.runs import recipe as alignment
from tests.training.runs import dense_folder, recipe, trainer

from smolmoe.alignment.run import estimate as estimate_alignment
from smolmoe.moe.loading import Skeleton
from smolmoe.moe.routing import find_routers
from smolmoe.pipeline.forecast import forecast
from smolmoe.recipe import AlignRecipe, PipelineRecipe, TrainRecipe, parse
from smolmoe.recipe.train import ObjectiveRecipe, RoutingRecipe
from smolmoe.training.run import estimate, train
from smolmoe.verification.doctor import doctor
from smolmoe.verification.routers import findings_at_start

UNTAUGHT = {"top-1", "top-1-balanced", "zero-router", "tied-router", "same-experts"}


def zeroed(model: Any) -> Any:
    with torch.no_grad():
        for _, router in find_routers(model):
            router.weight.zero_()
    return model


def differing(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def alike(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.copy_(parameter[:1].expand_as(parameter))
    return model


MODELS: dict[str, tuple[Any, set[str]]] = {
    "copies": (lambda: moe_of(dense_llama()), set()),
    "top-1": (lambda: moe_of(dense_llama(), top_k=1), {"top-1"}),
    "top-1, softmax over the chosen": (lambda: moe_of(dense_llama(), "granitemoeshared", top_k=1), {"top-1"}),
    "top-1, not renormalised": (
        lambda: random_moe("qwen3_moe", num_experts_per_tok=1, norm_topk_prob=False),
        set(),
    ),
    "zero router, copies, independent": (
        lambda: zeroed(alike(random_moe("glm4_moe", norm_topk_prob=False, num_experts_per_tok=1))),
        {"tied-router"},
    ),
    "zero router, copies": (lambda: zeroed(moe_of(dense_llama())), {"zero-router"}),
    "zero router, shards": (lambda: zeroed(moe_of(dense_llama(), granularity=2)), {"zero-router"}),
    "zero router, others": (lambda: zeroed(differing(moe_of(dense_llama()))), {"tied-router"}),
    "zero router, all experts, copies": (lambda: zeroed(moe_of(dense_llama(), top_k=4)), {"same-experts"}),
    "zero router, all experts, others": (lambda: zeroed(differing(moe_of(dense_llama(), top_k=4))), set()),
    "all experts": (lambda: moe_of(dense_llama(), top_k=4), set()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_training_says_what_the_doctor_says(tmp_path: Path, name: str) -> None:
    make, expected = MODELS[name]
    model, granularity = make(), 2 if "shards" in name else 1
    found = findings_at_start(model, ObjectiveRecipe(), RoutingRecipe(), granularity=granularity)
    assert {finding.code for finding in found} == expected
    if granularity == 1:
        said = {finding.code: finding.layers for finding in doctor(save(model, tmp_path / "moe")).findings}
        assert {code: layers for code, layers in said.items() if code in UNTAUGHT} == {
            finding.code: finding.layers for finding in found
        }


@pytest.mark.parametrize(
    ("options", "top_1", "zero"),
    [
        ({}, {"top-1"}, {"zero-router"}),
        ({"objective": {"load_balance": 0.01}}, {"top-1-balanced"}, set()),
        ({"objective": {"z_loss": 0.01}}, {"top-1"}, {"zero-router"}),  # it makes logits small, and all alike
        ({"routing": {"noise": 0.1}}, {"top-1"}, set()),  # draws part the experts; one gate stays 1
        ({"guided": True}, set(), set()),
    ],
)
def test_what_moves_a_router_after_all(options: dict[str, Any], top_1: set[str], zero: set[str]) -> None:
    objective = ObjectiveRecipe(**options.get("objective", {}))
    routing = RoutingRecipe(**options.get("routing", {}))
    for model, expected in ((moe_of(dense_llama(), top_k=1), top_1), (zeroed(moe_of(dense_llama())), zero)):
        found = findings_at_start(model, objective, routing, guided=options.get("guided", False))
        assert {finding.code for finding in found} == expected


@pytest.fixture(scope="module")
def top_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(moe_of(dense_llama(), top_k=1), tmp_path_factory.mktemp("moe") / "moe")


def test_a_run_warns_before_it_trains_and_its_dry_run_too(
    tmp_path: Path, top_1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages: list[str] = []
    values = recipe(tmp_path, top_1, trainer=trainer(max_steps=1))
    with caplog.at_level(logging.WARNING):
        result = train(
            values, report=lambda stage, done, total, detail="": stages.append(f"{stage} {len(caplog.records)}")
        )
    assert "Tokenising 1" in stages  # it was said before
    assert caplog.records[0].getMessage().endswith("[top-1]")
    assert [found["code"] for found in result.summary["findings"]] == ["top-1"]
    costs = estimate(parse(TrainRecipe, {**values, "out": str(tmp_path / "other")}))
    assert [found.code for found in costs.findings] == ["top-1"]
    assert costs.to_json()["findings"][0]["severity"] == "error"


@pytest.mark.parametrize(
    ("router", "expected"),
    [(None, ["top-1-balanced"]), ("balanced", ["top-1-balanced"]), ("free", ["top-1"]), ("frozen", [])],
)
def test_an_alignment_says_so_too(tmp_path: Path, top_1: Path, router: str | None, expected: list[str]) -> None:
    values = alignment(tmp_path, top_1, "sft", router=router)
    assert [found.code for found in estimate_alignment(values).findings] == expected


def test_a_pipeline_says_so_of_every_stage(tmp_path: Path) -> None:
    dense = dense_folder(tmp_path / "dense")
    tune = recipe(tmp_path, dense)
    del tune["out"]
    aligned = alignment(tmp_path, dense, "sft", router="free")
    del aligned["out"]
    stages = [
        {"name": "moe", "upcycle": {"source": str(dense), "experts": 4, "top_k": 1}},
        {"name": "tune", "train": {**tune, "model": {"path": "{moe}"}}},
        {"name": "align", "align": {**aligned, "model": {"path": "{tune}"}}},
    ]
    found = forecast(parse(PipelineRecipe, {"stages": stages, "out": str(tmp_path / "out")}))
    assert "Top-1 with renormalised gates" in found[0].warnings[0]
    assert [warning.endswith("[top-1]") for stage in found[1:] for warning in stage.warnings] == [True, True]


def test_without_weights_only_the_config_speaks(tmp_path: Path) -> None:
    folder = save(zeroed(moe_of(dense_llama(), top_k=1)), tmp_path / "moe")
    found = findings_at_start(Skeleton(folder).model, ObjectiveRecipe(), RoutingRecipe())
    assert [finding.code for finding in found] == ["top-1"]
    assert parse(AlignRecipe, alignment(tmp_path, folder, "sft")).router is None


def test_layers_whose_routers_cannot_be_read_are_named(tmp_path: Path) -> None:
    findings = doctor(save(hash_routed("hash_moe", "moe"), tmp_path / "moe")).findings
    found = next(finding for finding in findings if finding.code == "unread-routers")
    assert found.layers == (0,)
    assert "DeepseekV4HashRouter" in found.message
