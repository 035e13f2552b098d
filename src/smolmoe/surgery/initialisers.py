"""Pure initialisers: values in, values out, every draw from the generator that is given. All in float32."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, stream: str) -> torch.Generator:
    """A random stream of its own for every name, so that no block's values depend on what was drawn before."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def normal_rows(shape: tuple[int, ...], std: float, rng: torch.Generator) -> Tensor:
    """N(0, std) of this shape."""
    return torch.randn(shape, generator=rng) * std


def add_noise(values: Tensor, std: float, rng: torch.Generator) -> Tensor:
    """values + N(0, std), as in the noise variant of Drop-Upcycling (arXiv 2502.19261)."""
    return values + torch.randn(values.shape, generator=rng) * std


def choose_neurons(count: int, ratio: float, rng: torch.Generator) -> Tensor:
    """floor(ratio * count) of the neurons 0..count-1, ascending."""
    return torch.randperm(count, generator=rng)[: int(ratio * count)].sort().values


def redraw_neurons(values: Tensor, neurons: Tensor, axis: int, rng: torch.Generator) -> Tensor:
    """Replace the chosen neurons by N(mean, std) of the values they had, mean and std over all of them together.

    Drop-Upcycling (arXiv 2502.19261).

    Args:
        values: [I, D] (axis 0), [D, I] (axis 1), or a bias [I].
        neurons: indices along `axis`.
    """
    replaced = values.index_select(axis, neurons)
    if replaced.numel() < 2:  # no spread to draw from
        return values
    fresh = torch.randn(replaced.shape, generator=rng) * replaced.std() + replaced.mean()
    return values.index_copy(axis, neurons, fresh)
