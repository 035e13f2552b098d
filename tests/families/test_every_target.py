"""Each native class after a conversion: its routers, its expert commands and a training step, as for any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import edit_tensors, random_moe, save
from tests.surgery.test_request import plan

from smolmoe.errors import TargetError
from smolmoe.families import MOE_TARGETS
from smolmoe.families.spec import read_spec
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.loading import load_model
from smolmoe.moe.routing import RoutingCapture, find_routers
from smolmoe.surgery.convert import convert
from smolmoe.surgery.experts.add import from_dense
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.experts.run import add_expert, extract, prune
from smolmoe.surgery.experts.writer import write_program
from smolmoe.surgery.export.native import native_export
from smolmoe.surgery.export.native_forms import able, subject_of
from smolmoe.surgery.inspection import inspect

# target -> a source of the zoo that becomes it, and what the request has beside 4 experts, top-2
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "beam": ("gemma3", {}),
    "cohere2_moe": ("cohere2", {"shared": "full"}),
    "deepseek_v3": ("youtu", {"shared": "full"}),
    "dots1": ("qwen3_mixed", {"shared": "full"}),
    "ernie4_5_moe": ("ernie4_5", {"shared": "full"}),
    "flex_olmo": ("olmo2", {}),
    "glm4_moe": ("qwen3", {"shared": "full"}),
    "granitemoe": ("granite", {}),
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
        assert gate_spec(dict(find_routers(model))[layer]).experts == 4
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
    name, folder = made
    if name == "beam":
        with pytest.raises(TargetError, match="no dense class"):
            extract(folder, tmp_path / "one", [1])
    else:
        assert extract(folder, tmp_path / "one", [1]).claim.kind == "exact"
    assert prune(folder, tmp_path / "two", keep=[0, 3]).claim.kind in ("exact", "none", "deviates")
    assert read_moe(tmp_path / "two").experts == 2


def test_an_expert_is_added(made: tuple[str, Path], tmp_path: Path) -> None:
    """The source's own FFN to the MoE as converted, and a copy to one whose selection bias training has moved."""
    name, folder = made
    source = zoo.folder(SOURCES[name][0])
    if MOE_TARGETS[name].own_tokenizer:  # its class adds a token to the tests' small tokenizer
        source = shutil.copytree(source, tmp_path / "source")
        for file in source.glob("tokenizer*"):
            file.unlink()
    moved = shutil.copytree(folder, tmp_path / "moved")
    edit_tensors(moved, _move_selection_bias)
    assert add_expert(folder, tmp_path / "dense_added", dense=source).claim.kind == "exact"
    if MOE_TARGETS[name].names.selection_bias:
        shares = MOE_TARGETS[name].scoring == "softmax"  # of which a new expert takes its own
        assert add_expert(moved, tmp_path / "copy_added", copy_of=1).claim.kind == ("none" if shares else "exact")


def _move_selection_bias(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))


def test_its_source_is_inspected(made: tuple[str, Path]) -> None:
    name, _ = made
    found = {report.target: report for report in inspect(str(zoo.folder(SOURCES[name][0]))).targets}
    assert found[name].fits
    assert found[name].dense_layers in ("none", "first", "first, last", "any")


def test_every_class_that_it_can_become_computes_the_same(made: tuple[str, Path], tmp_path: Path) -> None:
    """Exported from the class, and from its generic form."""
    name, folder = made
    try:
        others = able(subject_of(read_moe(folder)))
    except TargetError:
        assert name == "beam"  # no dense class has its attention and norms
        return
    forms = {to: _exported(folder, to, tmp_path / to) for to in others}
    if "generic" in forms:
        assert name in able(subject_of(read_moe(forms["generic"])))
        forms["and back"] = _exported(forms["generic"], name, tmp_path / "back")
    expected = _logits(folder)
    for to, out in forms.items():
        assert (_logits(out) - expected).abs().max() <= 1e-5 * expected.abs().max(), to


def _exported(moe: Path, to: str, out: Path) -> Path:
    files = read_moe(moe)
    return write_program(native_export(files, to)[0], files, out, stage="export", made={})


def _logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_model(folder)(ids).logits


def test_a_shared_expert_that_is_averaged_counts_half(tmp_path: Path) -> None:
    """As in checkpoints of Cohere2Moe that are not ours."""
    model = random_moe("cohere2_moe", shared_expert_combination_strategy="average")
    folder = save(model, tmp_path / "moe")
    assert extract(folder, tmp_path / "one", [1]).claim.kind == "exact"
    assert add_expert(folder, tmp_path / "more").claim.kind == "exact"
    other = _exported(folder, "generic", tmp_path / "generic")
    expected = _logits(folder)
    assert (_logits(other) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_expert_without_a_centred_output_is_centred(tmp_path: Path) -> None:
    """OLMo 1's FFN in a class with RMSNorms, as the MoE's other experts are."""
    planned = plan("olmo", experts=4, top_k=2, target="mixtral")
    object.__setattr__(planned.recipe, "out", tmp_path / "moe")
    files = read_moe(convert(planned))
    new = from_dense(files, zoo.folder("olmo"))
    for layer, found in files.layers.items():
        down = new.ffn[layer]["down"]
        assert down.centred == 0
        weight = new.sources["dense"].read(down.reads[0].tensor)
        assert torch.equal(weight - weight.mean(0), files.parts.read(found.experts[0]["down"]))


@pytest.mark.parametrize("name", ["granitemoehybrid", "lfm2_untied", "phi3_partial"])
def test_an_expert_of_the_generic_form_is_a_dense_model_of_the_family(name: str, tmp_path: Path) -> None:
    """Wider than the source by the shared expert, in whatever settings the class reads its width from."""
    planned = plan(name, experts=4, top_k=2, target="generic", shared="full", diversify="noise")
    object.__setattr__(planned.recipe, "out", tmp_path / "moe")
    assert extract(convert(planned), tmp_path / "one", [1]).claim.kind == "exact"
    dense = read_spec(tmp_path / "one")
    assert dense.model_type == planned.spec.model_type
    assert dense.ffn_size == 2 * planned.spec.ffn_size
