"""Each mend of the tensors outside the FFNs, on small tensors: what the result's values are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smolmoe.families.adapt import Mend, centred, half_split, kept, mended, reordered, scaled, shifted, split, untied
from smolmoe.surgery.tensors.program import Read, kept_block
from smolmoe.surgery.tensors.values import block_values


class _Tensors(dict[str, Tensor]):
    """A source in memory."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self[name] if rows is None else self[name][slice(*rows)]


def _after(tensors: dict[str, Tensor], *mends: Mend) -> dict[str, Tensor]:
    pieces = mended(kept({name: tuple(tensor.shape) for name, tensor in tensors.items()}), mends)
    source = {"base": _Tensors(tensors)}
    return {
        name: block_values(kept_block(piece, (Read("base", piece.source),)), source, seed=0)
        for name, piece in pieces.items()
    }


def _rotated(x: Tensor, angles: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Each pair of rows turned by its angle."""
    y = x.clone()
    for angle, (i, j) in zip(angles, pairs, strict=True):
        y[i] = x[i] * angle.cos() - x[j] * angle.sin()
        y[j] = x[j] * angle.cos() + x[i] * angle.sin()
    return y


def test_a_stack_becomes_its_projections() -> None:
    stack = torch.randn(7, 3)
    parts = {"q_proj.weight": 4, "k_proj.weight": 2, "v_proj.weight": 1}
    found = _after({"a.qkv_proj.weight": stack, "b.weight": stack}, split("qkv_proj.weight", parts))
    assert list(found) == ["a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight", "b.weight"]
    assert torch.equal(torch.cat([found[name] for name in list(found)[:3]]), stack)


def test_interleaved_rotary_pairs_become_half_split_ones_in_every_head() -> None:
    """Scores of rotated queries and keys stay; rows that do not rotate stay where they are."""
    head_dim, rotary = 8, 6
    weights = {"q_proj.weight": torch.randn(2 * head_dim, 5), "k_proj.weight": torch.randn(2 * head_dim, 5)}
    found = _after(weights, reordered("q_proj.weight", "k_proj.weight", head=half_split(head_dim, rotary)))
    x = torch.randn(5)
    angles = torch.randn(2, 3)  # for the positions of the query and the key
    for head in (0, 1):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        interleaved = [(0, 1), (2, 3), (4, 5)]
        halves = [(0, 3), (1, 4), (2, 5)]
        scores = []
        for tensors, pairs in ((weights, interleaved), (found, halves)):
            q, k = (
                _rotated(tensors[f"{name}_proj.weight"][rows] @ x, angle, pairs)
                for name, angle in zip("qk", angles, strict=True)
            )
            scores.append(q @ k)
            assert torch.equal(tensors["q_proj.weight"][rows][rotary:], weights["q_proj.weight"][rows][rotary:])
        torch.testing.assert_close(scores[0], scores[1])
    assert not torch.equal(found["q_proj.weight"], weights["q_proj.weight"])


def test_a_norm_of_1_plus_w_is_shifted_before_or_after_it_is_scaled() -> None:
    w = torch.randn(4)
    assert torch.equal(_after({"norm.weight": w}, shifted("norm.weight"))["norm.weight"], 1 + w)
    both = _after({"norm.weight": w}, scaled("norm.weight", by=4.0), shifted("norm.weight"))["norm.weight"]
    torch.testing.assert_close(both, 4 * w + 1)


def test_an_embedding_that_is_scaled_after_it_was_untied_leaves_the_head_as_it_is() -> None:
    embedding = torch.randn(6, 3)
    found = _after({"model.embed_tokens.weight": embedding}, untied, scaled("embed_tokens.weight", by=3.0))
    assert torch.equal(found["lm_head.weight"], embedding)
    torch.testing.assert_close(found["model.embed_tokens.weight"], 3 * embedding)


def test_layernorm_of_a_stream_is_rmsnorm_of_the_stream_whose_writers_are_centred() -> None:
    tensors = {"embed_tokens.weight": torch.randn(6, 8) + 2, "o_proj.weight": torch.randn(8, 4) - 1}
    found = _after(tensors, centred("embed_tokens.weight", axis=1), centred("o_proj.weight", axis=0))
    x = torch.randn(4)
    stream, centred_stream = (each["embed_tokens.weight"][3] + each["o_proj.weight"] @ x for each in (tensors, found))
    theirs = torch.nn.functional.layer_norm(stream, (8,))
    ours = torch.nn.functional.rms_norm(centred_stream, (8,), eps=1e-5)
    torch.testing.assert_close(ours, theirs)
    assert (torch.nn.functional.rms_norm(stream, (8,), eps=1e-5) - theirs).abs().max() > 0.1
