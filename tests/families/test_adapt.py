"""Each change, as a program over real tensors, against the linear algebra written out."""

from __future__ import annotations

import pytest
import torch

from smolmoe.families.adapt import (
    Change,
    added,
    centred,
    changed,
    dropped,
    half_split,
    interleaved,
    kept,
    renamed,
    reordered,
    scaled,
    shifted,
    split,
    untied,
)
from smolmoe.surgery.tensors.program import Read, kept_block
from smolmoe.surgery.tensors.values import block_values

Tensors = dict[str, torch.Tensor]


class InMemory:
    def __init__(self, tensors: Tensors):
        self.tensors = tensors

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return self.tensors[name] if rows is None else self.tensors[name][rows[0] : rows[1]]


def after(tensors: Tensors, *changes: Change) -> Tensors:
    """The kept tensors after the changes, computed as the writer does."""
    pieces = changed(kept({name: tuple(tensor.shape) for name, tensor in tensors.items()}), changes)
    return {
        name: block_values(kept_block(piece, (Read("base", piece.source),)), {"base": InMemory(tensors)}, 0)
        for name, piece in pieces.items()
    }


def test_a_norm_of_one_plus_w() -> None:
    x, w = torch.randn(5, 16), torch.randn(16)
    found = after({"model.norm.weight": w, "a.weight": w}, shifted("norm.weight"))
    assert torch.equal(x * found["model.norm.weight"], x * (1 + w))
    assert torch.equal(found["a.weight"], w)


def test_scaled_after_it_was_shifted_and_before() -> None:
    w = torch.randn(16)
    torch.testing.assert_close(after({"w": w}, shifted("w"), scaled("w", by=3.0))["w"], 3 * (1 + w))
    torch.testing.assert_close(after({"w": w}, scaled("w", by=3.0), shifted("w"))["w"], 1 + 3 * w)


def test_a_stack_of_projections_is_taken_apart() -> None:
    w, b = torch.randn(12, 8), torch.randn(12)
    rows = {"q_proj": 8, "k_proj": 2, "v_proj": 2}
    found = after(
        {"l.qkv_proj.weight": w, "l.qkv_proj.bias": b, "l.o_proj.weight": w},
        split("qkv_proj.weight", {f"{name}.weight": count for name, count in rows.items()}),
        split("qkv_proj.bias", {f"{name}.bias": count for name, count in rows.items()}),
    )
    parts = [f"l.{name}" for name in rows]
    assert list(found) == [*(f"{p}.weight" for p in parts), *(f"{p}.bias" for p in parts), "l.o_proj.weight"]
    assert torch.equal(torch.cat([found[f"{part}.weight"] for part in parts]), w)
    assert torch.equal(torch.cat([found[f"{part}.bias"] for part in parts]), b)


@pytest.mark.parametrize("rotary", [None, 4])
def test_interleaved_rotary_becomes_half_split(rotary: int | None) -> None:
    """Scores of rotated queries and keys are the same; the rows that do not rotate stay where they are."""
    d, heads, count = 8, 2, rotary or 8
    x = torch.randn(6, 16, dtype=torch.float64)
    q, k = torch.randn(heads * d, 16), torch.randn(heads * d, 16)
    found = after(
        {"q_proj.weight": q, "k_proj.weight": k},
        reordered("q_proj.weight", "k_proj.weight", head=half_split(d, rotary)),
    )
    angles = torch.arange(6)[:, None] * 100.0 ** -(torch.arange(count // 2) / (count // 2)).double()
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def interleaved(weight: torch.Tensor) -> torch.Tensor:
        y = (x @ weight.double().T).view(6, heads, d)
        pairs = torch.view_as_complex(y[..., :count].reshape(6, heads, -1, 2).contiguous())
        return torch.cat([torch.view_as_real(pairs * turn).flatten(2), y[..., count:]], -1)

    def halves(weight: torch.Tensor) -> torch.Tensor:
        y = (x @ weight.double().T).view(6, heads, d)
        turned = torch.complex(y[..., : count // 2].contiguous(), y[..., count // 2 : count].contiguous()) * turn
        return torch.cat([turned.real, turned.imag, y[..., count:]], -1)

    expected = torch.einsum("ihd,jhd->hij", interleaved(q), interleaved(k))
    ours = torch.einsum("ihd,jhd->hij", halves(found["q_proj.weight"]), halves(found["k_proj.weight"]))
    torch.testing.assert_close(ours, expected)
    assert not torch.equal(found["q_proj.weight"], q)


def test_filled_tensors() -> None:
    found = after({"l.q_proj.weight": torch.randn(6, 4)}, added("q_proj.weight", "q_proj.bias"))
    assert torch.equal(found["l.q_proj.bias"], torch.zeros(6))
    found = after({"l.q_proj.weight": torch.randn(6, 4)}, added("q_proj.weight", "sinks", -1e4, (3,)))
    assert torch.equal(found["l.sinks"], torch.full((3,), -1e4))


def test_the_head_is_the_embedding() -> None:
    w = torch.randn(6, 4)
    found = after({"model.embed_tokens.weight": w}, untied, scaled("embed_tokens.weight", by=2.0))
    assert torch.equal(found["lm_head.weight"], w)
    assert torch.equal(found["model.embed_tokens.weight"], 2 * w)
    own = torch.randn(6, 4)
    assert torch.equal(after({"model.embed_tokens.weight": w, "lm_head.weight": own}, untied)["lm_head.weight"], own)


def test_names() -> None:
    found = after(
        {"a.b.weight": torch.ones(1), "a.c.weight": torch.ones(1)}, renamed("a.b", "a.d"), dropped("c.weight")
    )
    assert list(found) == ["a.d.weight"]


def test_layernorm_of_a_stream_is_rmsnorm_of_the_stream_whose_writers_are_centred() -> None:
    tensors = {"embed_tokens.weight": torch.randn(6, 8) + 2, "o_proj.weight": torch.randn(8, 4) - 1}
    found = after(tensors, centred("embed_tokens.weight", axis=1), centred("o_proj.weight", axis=0))
    x = torch.randn(4)
    stream, centred_stream = (each["embed_tokens.weight"][3] + each["o_proj.weight"] @ x for each in (tensors, found))
    theirs = torch.nn.functional.layer_norm(stream, (8,))
    ours = torch.nn.functional.rms_norm(centred_stream, (8,), eps=1e-5)
    torch.testing.assert_close(ours, theirs)
    assert (torch.nn.functional.rms_norm(stream, (8,), eps=1e-5) - theirs).abs().max() > 0.1


@pytest.mark.parametrize("rotary", [2, 4, 8])
def test_interleaving_is_the_inverse_of_half_splitting(rotary: int) -> None:
    rows = list(range(rotary))
    halves = [rows[row] for row in half_split(rotary)]
    assert [halves[row] for row in interleaved(rotary)] == rows
    assert rotary == 2 or halves != rows


def test_rows_in_front_stay() -> None:
    assert interleaved(4, 3) == (0, 1, 2, 3, 5, 4, 6)
