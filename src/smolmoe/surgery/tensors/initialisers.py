"""Pure initialisers: values in, values out, all randomness from the given generator. All in float32.

Random numbers are NumPy's, from a counter-based generator keyed by name: the same on every machine and torch version,
and a conversion that only copies does not need torch at all.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Values = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def generator(seed: int, stream: str) -> np.random.Generator:
    """A separate random stream for every name, so that no block's values depend on earlier samples."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(shape: tuple[int, ...], rng: np.random.Generator) -> Values:
    """N(0, 1) of this shape."""
    return rng.standard_normal(shape, dtype=np.float32)


def add_noise(values: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    """values + N(0, std), as in the noise variant of Drop-Upcycling (arXiv 2502.19261)."""
    import torch

    return values + torch.from_numpy(normal(tuple(values.shape), rng)) * std


def add_low_rank(values: Tensor, rank: int, std: float, rng: np.random.Generator) -> Tensor:
    """values + B A for a matrix [out, in], with B [out, rank] and A [rank, in] Gaussian and entries of B A of std."""
    import torch

    rows, columns = values.shape
    b, a = (torch.from_numpy(normal(shape, rng)) for shape in ((rows, rank), (rank, columns)))
    return values + b @ a * (std / rank**0.5)


def choose_neurons(count: int, ratio: float, rng: np.random.Generator) -> Tensor:
    """floor(ratio * count) of the neurons 0..count-1, ascending."""
    import torch

    return torch.from_numpy(np.sort(rng.permutation(count)[: int(ratio * count)]))


def redraw_neurons(values: Tensor, neurons: Tensor, axis: int, rng: np.random.Generator) -> Tensor:
    """Replace the chosen neurons by samples of N(mean, std), with mean and std over all their old values.

    Drop-Upcycling (arXiv 2502.19261).

    Args:
        values: [I, D] (axis 0), [D, I] (axis 1), or a bias [I].
        neurons: indices along `axis`.
    """
    import torch

    replaced = values.index_select(axis, neurons)
    if replaced.numel() < 2:  # std is undefined
        return values
    fresh = torch.from_numpy(normal(tuple(replaced.shape), rng)) * replaced.std() + replaced.mean()
    return values.index_copy(axis, neurons, fresh)
