"""Some experts of an MoE: what is read, what it is called, and that the result is the MoE that may choose no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import MOE_CONFIGS, dense_llama, random_moe, save
from tests.surgery.test_request import plan

from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import load_model
from smolmoe.moe.restrict import only_experts
from smolmoe.surgery.convert import convert
from smolmoe.surgery.experts.moe_files import MoeFiles, read_moe
from smolmoe.surgery.experts.subset import Subset, subset_of
from smolmoe.surgery.tensors.writer import write_tensors

KINDS = [*MOE_CONFIGS, "generic"]
TOLERANCE = 1e-5  # of the largest logit


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("subset")


def generic_moe(out: Path, source: str = "llama", **options: Any) -> Path:
    """An upcycled generic model whose experts differ."""
    different = {} if "diversify" in options else {"diversify": "noise", "noise_std": 0.1}
    made = plan(source, **{"experts": 4, **different, **options}, target="generic")
    object.__setattr__(made.recipe, "out", out)
    return convert(made)


def moe(work: Path, kind: str, **config: Any) -> Path:
    """A folder of an MoE with random experts; made once for each set of settings."""
    folder = work / f"{kind}{sorted(config.items())}".replace("/", "")
    if not folder.exists():
        generic_moe(folder) if kind == "generic" else save(random_moe(kind, **config), folder)
    return folder


def rewrite(folder: Path, out: Path, **config: Any) -> Path:
    """The same weights under another config."""
    shutil.copytree(folder, out)
    values = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(values | config))
    return out


def written(subset: Subset, out: Path) -> Path:
    out.mkdir()
    (out / "config.json").write_text(json.dumps(subset.config))
    write_tensors(out, subset.tensors, subset.sources, seed=0, max_shard_bytes=10**9)
    return out


def logits(folder: Path, available: dict[int, tuple[int, ...]] | None = None) -> torch.Tensor:
    ids = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    model = load_model(folder)
    with torch.no_grad():
        if available is None:
            return model(ids).logits
        with only_experts(model, available):
            return model(ids).logits


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_is_the_moe_that_may_choose_no_others(work: Path, kind: str) -> None:
    folder = moe(work, kind)
    subset = subset_of(folder, (1, 3))
    got = logits(written(subset, work / f"{kind} two"))
    assert far(logits(folder, subset.chosen), got) <= TOLERANCE
    assert far(logits(folder, dict.fromkeys(subset.chosen, (0, 3))), got) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", ["qwen3_moe", "granitemoeshared", "generic"])
def test_other_experts_in_every_layer(work: Path, kind: str) -> None:
    folder = moe(work, kind)
    layers = list(read_moe(folder).layers)
    chosen = {layer: (0, 2, 3) if i % 2 else (1, 2, 3) for i, layer in enumerate(layers)}
    got = logits(written(subset_of(folder, chosen), work / f"{kind} layers"))
    assert far(logits(folder, chosen), got) <= TOLERANCE
    assert far(logits(folder, dict.fromkeys(layers, (1, 2, 3))), got) > 100 * TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_bytes_are_written_as_said(work: Path, kind: str) -> None:
    folder = moe(work, kind)
    subset = subset_of(folder, (0, 2))
    out = written(subset, work / f"{kind} bytes")
    disk = load_file(out / "model.safetensors")
    assert set(disk) == {tensor.name for tensor in subset.tensors}
    # Half of the experts' bytes, all of what is shared but half of the routers' rows.
    whole = subset_of(folder, range(4))
    assert subset.expert_bytes * 2 == whole.expert_bytes
    assert subset.nbytes == subset.shared_bytes + subset.expert_bytes == sum(t.nbytes for t in disk.values())
    assert whole.nbytes == sum(info.nbytes for info in whole.files.checkpoint.tensors.values())
    rows = [t.nbytes for t in whole.tensors if t.role == "router"]
    assert whole.shared_bytes - subset.shared_bytes == sum(rows) // 2


def test_k_is_never_more_than_there_are_and_names_follow(work: Path) -> None:
    folder = rewrite(moe(work, "mixtral"), work / "named", expert_names=["code", None, "math", "chat"])
    one = subset_of(folder, [2])
    assert (one.config["num_local_experts"], one.config["num_experts_per_tok"]) == (1, 1)
    assert one.config["expert_names"] == ["math"]
    assert subset_of(folder, [0, 1, 2]).config["num_experts_per_tok"] == 2
    with pytest.raises(RequestError, match="all layers must keep the same"):
        subset_of(folder, {0: [0], 1: [1]})


def test_what_cannot_be_kept_is_refused(work: Path, tmp_path: Path) -> None:
    mixtral, glm = moe(work, "mixtral"), moe(work, "glm4_moe")
    for wrong in ([4], [-1], []):
        with pytest.raises(RequestError, match="experts 0 to 3"):
            subset_of(mixtral, wrong)
    with pytest.raises(RequestError, match="same number"):
        subset_of(mixtral, {0: [0], 1: [0, 1]})
    with pytest.raises(RequestError, match="every MoE layer"):
        subset_of(mixtral, {0: [0]})
    with pytest.raises(RequestError, match="at least 2 experts"):
        subset_of(glm, [1])
    with pytest.raises(SourceError, match="is a dense model"):
        subset_of(save(dense_llama(), tmp_path / "dense"), [0])
    grouped = rewrite(glm, tmp_path / "grouped", n_group=2, topk_group=1)
    with pytest.raises(RequestError, match="1 of 2 groups"):
        subset_of(grouped, [0, 1])
    free = subset_of(rewrite(glm, tmp_path / "free", n_group=2, topk_group=2), [0, 1, 3])
    assert (free.config["n_group"], free.config["topk_group"]) == (1, 1)
    limited = rewrite(moe(work, "generic"), tmp_path / "limited", capacity_factor=1.0)
    with pytest.raises(RequestError, match="limited capacity"):
        subset_of(limited, [0, 1])


def test_sixteen_bits_and_selection_biases_keep_their_types(tmp_path: Path) -> None:
    model = random_moe("glm4_moe").to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias = layer.mlp.gate.e_score_correction_bias.float()
            layer.mlp.gate.e_score_correction_bias.copy_(torch.tensor([0.4, -0.3, 0.2, -0.1]))
    folder = save(model, tmp_path / "moe")
    subset = subset_of(folder, [1, 2])
    out = written(subset, tmp_path / "two")
    found = load_file(out / "model.safetensors")
    bias = found["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32
    torch.testing.assert_close(bias, torch.tensor([-0.3, 0.2]))
    assert found["model.layers.1.mlp.experts.1.up_proj.weight"].dtype == torch.bfloat16
    assert far(logits(folder, subset.chosen), logits(out)) <= TOLERANCE


def test_parts_of_a_stack_are_the_experts_own(work: Path) -> None:
    files: MoeFiles = read_moe(moe(work, "granitemoeshared"))
    layer = files.layers[1]
    stack = files.checkpoint.read("model.layers.1.block_sparse_moe.input_linear.weight")
    width = stack.shape[1] // 2
    assert torch.equal(files.parts.read(layer.experts[3]["gate"]), stack[3, :width])
    assert torch.equal(files.parts.read(layer.experts[3]["up"]), stack[3, width:])
    assert files.all_copies is False
