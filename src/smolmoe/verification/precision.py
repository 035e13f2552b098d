"""Products of fp32 numbers that are products of fp32 numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, fp32 matrices are multiplied and convolved in fp32.

    A GPU may round their entries to TF32, 10 bits of mantissa: cuDNN's convolutions do by default, as in LFM2, matrix
    products after `torch.set_float32_matmul_precision("high")`. A claim about fp32 would then fail by that rounding.
    """
    libraries: Any = torch.backends  # whose submodules make their settings when they are imported
    backends = (
        libraries.cuda.matmul,
        libraries.cudnn.conv,
        libraries.mkldnn.matmul,
        libraries.mkldnn.conv,
    )
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting
