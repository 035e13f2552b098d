"""Each native class after a conversion: its routers, its expert commands and a training step, as for any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.surgery.test_request import plan

from smolmoe.families import MOE_TARGETS
from smolmoe.moe.loading import load_model
from smolmoe.moe.routing import RoutingCapture
from smolmoe.surgery.convert import convert
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.experts.run import extract, prune

# target -> a source of the zoo that becomes it, and what the request has beside 4 experts, top-2
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "beam": ("gemma3", {}),
    "cohere2_moe": ("cohere2", {"shared": "full"}),
    "deepseek_v3": ("youtu", {"shared": "full"}),
    "ernie4_5_moe": ("ernie4_5", {"shared": "full"}),
    "flex_olmo": ("olmo2", {}),
    "glm4_moe": ("qwen3", {"shared": "full"}),
    "granitemoe_swa": ("smollm3_window", {"shared": "full"}),
    "granitemoehybrid": ("granitemoehybrid", {"shared": "full"}),
    "granitemoeshared": ("granite", {"shared": "full"}),
    "hunyuan_v1_moe": ("hunyuan", {"shared": "full"}),
    "lfm2_moe": ("lfm2", {}),
    "mellum": ("qwen3_mixed", {}),
    "mixtral": ("llama_rope3", {}),
    "qwen2_moe": ("qwen2_window", {"shared": "full"}),
    "qwen3_5_moe_text": ("qwen3_5", {"shared": "full"}),
    "qwen3_moe": ("qwen3", {}),
    "generic": ("gpt2", {"shared": "full"}),
}


def test_every_target_is_tried() -> None:
    assert set(SOURCES) == set(MOE_TARGETS)


@pytest.fixture(scope="module", params=sorted(SOURCES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name, options = SOURCES[request.param]
    planned = plan(name, experts=4, top_k=2, target=request.param, diversify="noise", **options)
    object.__setattr__(planned.recipe, "out", tmp_path_factory.mktemp("moe") / request.param)
    return request.param, convert(planned)


def test_its_routers_are_read(made: tuple[str, Path]) -> None:
    name, folder = made
    model = load_model(folder)
    ids = torch.randint(2, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), RoutingCapture(model) as capture:
        model(ids)
    assert len(capture.layers) == zoo.LAYERS
    for layer in capture.layers:
        routing = capture.routing(layer)
        assert routing.top_k == 2
        scale = torch.ones(()) if MOE_TARGETS[name].renormalises else routing.weights.sum(-1).mean()
        torch.testing.assert_close(routing.weights.sum(-1), scale.expand(len(routing.weights)), atol=1e-5, rtol=0)


def test_its_files_are_read(made: tuple[str, Path]) -> None:
    name, folder = made
    files = read_moe(folder)
    assert (files.kind, files.experts, files.top_k) == (name, 4, 2)
    assert bool(files.layers[0].shared) is ("shared" in SOURCES[name][1])
    assert files.renormalises
    assert not files.all_copies


def test_its_experts_are_taken_out(made: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = made
    assert extract(folder, tmp_path / "one", [1]).claim.kind == "exact"
    assert prune(folder, tmp_path / "two", keep=[0, 3]).claim.kind in ("exact", "none", "deviates")
    assert read_moe(tmp_path / "two").experts == 2
