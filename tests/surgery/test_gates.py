"""Independent gates: a constant times the sigmoid of each logit, 1 in all at zero logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import edit_tensors
from tests.surgery.test_identity import stock_results
from tests.surgery.test_moments import converted
from tests.surgery.test_request import plan

from smolmoe.moe.gating import gate_spec
from smolmoe.moe.loading import load_model
from smolmoe.moe.routing import find_routers
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.experts.run import add_expert, extract, prune
from smolmoe.surgery.export.run import export
from smolmoe.surgery.plan import NO_ROUTER_GRADIENT

HALF = {"experts": 4, "top_k": 1, "shared": 24, "gates": "independent"}
IDS = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "target", "scale"),
    [
        ("llama", HALF, "glm4_moe", 2.0),
        ("qwen3", HALF, "glm4_moe", 2.0),
        ("qwen3_mixed", HALF, "dots1", 2.0),
        ("youtu", HALF, "deepseek_v3", 2.0),
        ("lfm2", {"experts": 4, "gates": "independent"}, "lfm2_moe", 1.0),
        ("gemma3", {"experts": 4, "gates": "independent"}, "beam", 1.0),
        ("llama", {"experts": 4, "gates": "independent"}, "generic", 1.0),
        ("qwen2", HALF | {"shared": "full", "top_k": 4}, "glm4_moe", 0.25),
        ("gpt2", HALF, "generic", 2.0),
    ],
)
def test_the_first_class_that_has_them(name: str, options: dict[str, Any], target: str, scale: float) -> None:
    made = plan(name, **options)
    assert made.target.name == target
    assert made.config["norm_topk_prob"] is False
    assert made.config["routed_scaling_factor"] == scale
    assert made.config.get("scoring_func", "sigmoid") == "sigmoid"


def test_only_a_zero_router_is_exact() -> None:
    zero, random = plan(**HALF, router="zero"), plan(**HALF)
    assert zero.claim.kind == "exact"
    assert "2 x sigmoid(0) = 1" in zero.claim.reason
    assert any("routing.sample" in warning for warning in zero.warnings)
    assert random.claim.kind == "deviates"
    router = next(tensor for tensor in random.tensors if tensor.role == "router")
    assert router.blocks[0].std == 0.002
    assert plan(**HALF | {"shared": "residual"}).claim.kind == "exact"  # whatever its gates


@pytest.mark.parametrize(("gates", "learns"), [("normalised", False), ("independent", True)])
def test_a_single_expert_gives_the_router_a_gradient(gates: str, learns: bool, tmp_path: Path) -> None:
    made = converted(tmp_path / "moe", **HALF | {"gates": gates}, target="glm4_moe")
    assert (NO_ROUTER_GRADIENT in made.warnings) != learns
    model = load_model(tmp_path / "moe")
    model(input_ids=IDS, labels=IDS).loss.backward()
    for router in dict(find_routers(model)).values():
        assert (float(router.weight.grad.abs().max()) > 1e-6) == learns
        assert gate_spec(router).fixed_gates != learns


def test_half_shared_and_one_copy_of_the_other_half_cost_what_the_dense_model_costs() -> None:
    made = plan("llama_untied", **HALF)
    routers = sum(tensor.size for tensor in made.tensors if tensor.role == "router")
    assert made.parameters.active - routers - 3 * 4 == made.dense_parameters.active  # and the selection biases


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2", "gpt2", "youtu", "lfm2"])
def test_every_expert_keeps_the_function(name: str, tmp_path: Path) -> None:
    """A zero router chooses the first ones. The selection bias leaves gates alone, so it may choose any."""
    pairs = {}
    for chosen in (1, 3):
        out = tmp_path / f"{name}_{chosen}"
        options = {"experts": 4, "gates": "independent"} if name == "lfm2" else HALF
        converted(out, name, **options, router="zero")

        def prefer(tensors: dict[str, Any], chosen: int = chosen) -> None:
            for key, tensor in tensors.items():
                if key.endswith(("e_score_correction_bias", "expert_bias")):
                    tensor[chosen] = 1.0

        edit_tensors(out, prefer)
        pairs[str(chosen)] = (zoo.folder(name), out)
    for key, found in stock_results(pairs, tmp_path).items():
        assert max(found["plain"], found["padded"], found["cached"]) <= 1e-5, (key, found)


# -- later commands --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts and router rows that differ, so that a wrong gate shows."""
    out = tmp_path_factory.mktemp("gates") / "moe"
    converted(out, "qwen3", **HALF | {"top_k": 2}, router_std=0.3, diversify="noise")
    return out


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(IDS).logits


@pytest.mark.parametrize("target", ["generic", "dots1"])
def test_export_keeps_the_gates(target: str, moe: Path, tmp_path: Path) -> None:
    export(moe, tmp_path / "out", target)
    torch.testing.assert_close(logits(tmp_path / "out"), logits(moe), atol=1e-5, rtol=1e-5)
    files = read_moe(tmp_path / "out")
    assert (files.renormalises, files.gate_scale) == (False, 1.0)


def test_an_added_expert_changes_nothing(moe: Path, tmp_path: Path) -> None:
    add_expert(moe, tmp_path / "out", copy_of="1")
    torch.testing.assert_close(logits(tmp_path / "out"), logits(moe), atol=1e-5, rtol=1e-5)


def test_a_smaller_moe_keeps_its_gates(moe: Path, tmp_path: Path) -> None:
    prune(moe, tmp_path / "out", keep=["0", "1", "2"])
    files = read_moe(tmp_path / "out")
    assert (files.renormalises, files.gate_scale, files.experts) == (False, 1.0, 3)


def test_the_only_copy_of_a_zero_router_is_the_dense_model(tmp_path: Path) -> None:
    """Its gate is measured, and is 1 on every token."""
    converted(tmp_path / "moe", "qwen3", **HALF, router="zero")
    extract(tmp_path / "moe", tmp_path / "out", "2")
    expected = logits(zoo.folder("qwen3"))
    torch.testing.assert_close(logits(tmp_path / "out"), expected, atol=1e-5, rtol=1e-5)
