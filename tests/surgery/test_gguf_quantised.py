"""Quantised GGUF files: what is asked of llama.cpp, the order of experts, and how much of a file fits a GPU.

The slow tests need llama.cpp's converter and library, see `test_gguf`; one also needs llama-imatrix.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import random_moe, save

from smolmoe.errors import RequestError
from smolmoe.moe.loading import load_model
from smolmoe.results.gguf import Placement
from smolmoe.surgery.experts.moe_files import MoeFiles, read_moe
from smolmoe.surgery.experts.subset import permuted
from smolmoe.surgery.experts.writer import write_program
from smolmoe.surgery.export.gguf.converter import ENVIRONMENT
from smolmoe.surgery.export.gguf.engine import available
from smolmoe.surgery.export.gguf.order import ordered
from smolmoe.surgery.export.gguf.placement import kv_bytes, placed
from smolmoe.surgery.export.gguf.quantise import K_QUANTS, find_program, odd_rows
from smolmoe.surgery.export.run import export

llama_cpp = pytest.mark.skipif(
    not (available() and os.environ.get(ENVIRONMENT)), reason=f"needs llama-cpp-python, and {ENVIRONMENT} set"
)
# A dense layer first, a shared expert, and experts of 100, 200 and 300 bytes.
SIZES = {
    "token_embd.weight": 1000,
    "output.weight": 1000,
    "blk.0.ffn_up.weight": 10,
    "blk.1.ffn_up_shexp.weight": 10,
    "blk.1.ffn_gate_inp.weight": 10,
    **{f"blk.{layer}.ffn_{part}_exps.weight": 100 * layer // 2 for layer in (1, 2, 3) for part in ("up", "down")},
}
REST = 1000 + 30  # the output head, and what is not an expert


def place(vram: int, sizes: dict[str, int] = SIZES) -> Placement:
    return placed(sizes, 4, kv_cache=200, overhead=50, vram=vram, context=64)


@pytest.mark.parametrize(
    ("room", "n_cpu_moe", "kept"),
    [(600, 0, 600), (599, 2, 500), (500, 2, 500), (499, 3, 300), (299, 4, 0), (0, 4, 0)],
)
def test_the_smallest_number_of_layers_that_fits(room: int, n_cpu_moe: int, kept: int) -> None:
    # The dense layer counts as one of the first layers, as in llama.cpp.
    found = place(REST + 200 + 50 + room)
    assert (found.n_cpu_moe, found.gpu_experts, found.experts) == (n_cpu_moe, kept, 600)
    assert found.weights == REST
    assert found.fits
    assert found.used == REST + 250 + kept <= found.vram


def test_what_does_not_fit_without_experts_is_said() -> None:
    found = place(REST + 249)
    assert not found.fits
    assert found.n_cpu_moe == 4
    assert found.to_json()["fits"] is False


def test_a_tied_head_is_copied_to_the_gpu() -> None:
    tied = {name: nbytes for name, nbytes in SIZES.items() if name != "output.weight"}
    assert place(10**6, tied).weights == place(10**6).weights == REST


def test_the_options_of_llama_cpp() -> None:
    found = place(REST + 250 + 300)
    assert found.options == "-ngl 5 -c 64 -ncmoe 3"
    assert found.override == r'-ot "blk\.(0|1|2)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"'
    assert place(10**6).override is None


def test_the_kv_cache() -> None:
    settings = {"block_count": 3, "attention.head_count": 8, "attention.head_count_kv": 2, "embedding_length": 64}
    assert kv_bytes(settings, 100) == 3 * 2 * (8 + 8) * 100 * 2
    wide = settings | {"attention.key_length": 16, "attention.value_length": 4}
    assert kv_bytes(wide, 100) == 3 * 2 * (16 + 4) * 100 * 2
    # Layers without attention have no heads.
    assert kv_bytes(wide | {"attention.head_count_kv": [2, 0, 1]}, 100) == 3 * (16 + 4) * 100 * 2
    del settings["attention.head_count_kv"]
    assert kv_bytes(settings, 100) == 3 * 8 * (8 + 8) * 100 * 2


def test_rows_that_a_k_type_cannot_store() -> None:
    assert odd_rows([576, 256, 1536, 64, 576]) == (64, 576)


# -- the order of experts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["mixtral", "granitemoeshared", "glm4_moe"])
def test_experts_in_another_order_compute_the_same(model_type: str, tmp_path: Path) -> None:
    folder = save(random_moe(model_type), tmp_path / "moe")
    files = read_moe(folder)
    use = {layer: torch.arange(files.experts).float().roll(layer) for layer in files.layers}
    order = ordered(files, use, "text")
    assert order.kept == ()
    for layer, experts in order.experts.items():
        assert all(use[layer][one] > use[layer][other] for one, other in pairwise(experts))
    out = write_program(permuted(files, order.experts), files, tmp_path / "out", stage="export", made={})
    new = read_moe(out)
    for layer, experts in order.experts.items():
        for place, old in enumerate(experts):
            assert torch.equal(down(new, layer, place), down(files, layer, old))
    ids = torch.arange(2, 60)[None]
    with torch.no_grad():
        before, after = (load_model(path)(ids).logits for path in (folder, out))
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


def down(files: MoeFiles, layer: int, expert: int) -> torch.Tensor:
    return files.parts.read(files.layers[layer].experts[expert]["down"])


def test_equal_router_rows_keep_their_order(tmp_path: Path) -> None:
    model = random_moe("mixtral")
    with torch.no_grad():
        rows = next(tensor for name, tensor in model.named_parameters() if "layers.0" in name and "gate.weight" in name)
        rows[1] = rows[2]
    files = read_moe(save(model, tmp_path / "moe"))
    found = ordered(files, {layer: torch.arange(4.0) for layer in files.layers}, "text")
    assert found.kept == (0,)
    assert found.experts == {0: (0, 1, 2, 3)} | {layer: (3, 2, 1, 0) for layer in files.layers if layer}


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"quant": "q3_k"}, "quant", "must be one of f32, f16, q8_0, q6_k, q5_k_m, q4_k_m"),
        ({"quant": "Q8_0", "importance": "a.txt"}, "importance", "only q6_k, q5_k_m, q4_k_m use"),
        ({"vram": "8 apples"}, "vram", "is not a size"),
        ({"vram": "8GB", "context": 0}, "context", "must be from 1 to the model's"),
        ({"vram": "8GB", "context": 10**6}, "context", "must be from 1 to the model's"),
        ({"context": 16}, "context", "sizes the KV cache"),
    ],
)
def test_what_is_refused(asked: dict[str, Any], field: str, said: str, tmp_path: Path) -> None:
    folder = save(random_moe("mixtral"), tmp_path / "moe")
    with pytest.raises(RequestError, match=said) as caught:
        export(folder, tmp_path / "out", "gguf", llama_cpp=tmp_path, dry_run=True, **asked)
    assert caught.value.field == field
    with pytest.raises(RequestError):
        export(folder, tmp_path / "out", "mixtral", dry_run=True, **asked)


@pytest.mark.skipif(available(), reason="llama-cpp-python is installed")
def test_the_library_is_needed(tmp_path: Path) -> None:
    folder = save(random_moe("mixtral"), tmp_path / "moe")
    with pytest.raises(RequestError, match="llama-cpp-python is not installed"):
        export(folder, tmp_path / "out", "gguf", quant="Q4_K_M", dry_run=True)


def test_where_the_program_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(RequestError, match="llama-imatrix, which computes the importance matrix, was not found"):
        find_program(tmp_path)
    for place in (tmp_path / "programs", tmp_path / "vendor" / "llama.cpp" / "build" / "bin"):
        place.mkdir(parents=True)
        (place / "llama-imatrix").write_text("")
        (place / "llama-imatrix").chmod(0o755)
        assert find_program(tmp_path) == place / "llama-imatrix"


# -- with llama.cpp ---------------------------------------------------------------------------------------------------

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
SMALL = {"initializer_range": 0.05}  # so that rounding does not change everything


def wide_moe(folder: Path, **config: Any) -> Path:
    return save(random_moe("mixtral", **WIDE | SMALL | config), folder)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Enough for two sequences of the tiny models' contexts."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"The {n}th sentence says that {n} and {n * n} are numbers." for n in range(200)))
    return path


@llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("quant", K_QUANTS)
def test_every_type(quant: str, tmp_path: Path) -> None:
    found: Any = export(wide_moe(tmp_path / "moe"), tmp_path / "out", "gguf", quant=quant.upper(), vram="1GB")
    exact, rounded = found.measured["f32"], found.measured[quant]
    assert exact.kl < 1e-9 < rounded.kl < 0.1
    assert found.odd_rows == ()
    assert rounded.nbytes < 0.35 * exact.nbytes
    assert found.placement.n_cpu_moe == 0
    beside = json.loads((tmp_path / "out.json").read_text())
    assert beside["placement"]["options"] == found.placement.options
    assert beside["measured"][quant]["kl"] == rounded.kl


@llama_cpp
@pytest.mark.slow
def test_rows_that_do_not_fit_become_other_types(tmp_path: Path) -> None:
    moe = wide_moe(tmp_path / "moe", intermediate_size=320)
    found: Any = export(moe, tmp_path / "out", "gguf", quant="q4_k_m")
    assert found.odd_rows == (320,)
    odd = {name for kind in ("Q5_0", "Q8_0") for name in found.other_types[kind] if "ffn_down_exps" in name}
    assert len(odd) == 2  # of two layers


@llama_cpp
@pytest.mark.slow
def test_ordered_experts_compute_the_same_in_llama_cpp(text: Path, tmp_path: Path) -> None:
    found: Any = export(wide_moe(tmp_path / "moe"), tmp_path / "out", "gguf", order_by=text)
    exact = found.measured["f32"]
    assert any(experts != tuple(range(4)) for experts in found.order.experts.values())
    assert exact.sure_max_abs < 1e-5 * exact.max_logit
    assert exact.flips <= exact.close_flips


@llama_cpp
@pytest.mark.slow
def test_the_importance_matrix_is_used(text: Path, tmp_path: Path) -> None:
    try:
        find_program(None)
    except RequestError as error:
        pytest.skip(error.message)
    moe = wide_moe(tmp_path / "moe")
    without: Any = export(moe, tmp_path / "without", "gguf", quant="q4_k_m")
    found: Any = export(moe, tmp_path / "out", "gguf", quant="q4_k_m", importance=text)
    assert found.importance.tokens > 0
    assert found.importance.experts == 2 * 4
    assert found.nbytes == without.nbytes
    assert found.measured["q4_k_m"].kl != without.measured["q4_k_m"].kl
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(RequestError, match="llama-imatrix failed") as caught:
        export(moe, tmp_path / "short", "gguf", quant="q4_k_m", importance=tmp_path / "short.txt")
    assert caught.value.fix == "The text must have at least 256 tokens."
