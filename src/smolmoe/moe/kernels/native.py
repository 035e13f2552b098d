"""Custom kernels for few tokens, compiled on the machine that uses them.

The libraries below torch repack a weight for every product, which for few tokens takes longer than the product.
`few_tokens.c` reads a weight once, in place. The machine's C compiler builds it at first use, for this processor,
into the user's cache; without a compiler torch's products are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from smolmoe.moe.kernels.dispatch import Span

logger = logging.getLogger(__name__)

SOURCE = "few_tokens.c"
# Rows per expert, on average: with more the libraries' packing pays off.
FEW = {torch.float32: 48, torch.bfloat16: 64}
_MULTIPLE, _LEAST = 32, 4  # of the inputs' width; outputs
_FLAGS = ("-O3", "-march=native", "-fPIC", "-ffp-contract=fast", "-w")
_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_THREAD_BYTES = 2**18  # to read: waking a second thread for less costs more than it does


def project_few(x: torch.Tensor, stack: torch.Tensor, spans: Sequence[Span], out: torch.Tensor) -> bool:
    """Rows of x [R, in] @ their expert's [out, in]^T of `stack` [E, out, in], into `out` [R, out].

    Rows of `spans` count from the first span's. Returns False, and does nothing, where the kernel is not for this: many
    rows per expert, other dtypes, odd sizes, non-contiguous tensors, no compiler.
    """
    if x.shape[0] > FEW.get(x.dtype, 0) * len(spans) or not _suits(x, stack, out):
        return False
    start = spans[0][1]
    return _project(x, stack, [number for expert, a, b in spans for number in (expert, a - start, b - start)], out)


def few_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """x [..., in] @ weight [out, in]^T, [..., out], without gradients; None if the kernel does not support this."""
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    if x.shape[-1] != inputs or not 0 < rows <= FEW.get(x.dtype, 0) or not x.is_cpu:
        return None
    x = x.contiguous()
    out = x.new_empty((*x.shape[:-1], outputs))
    return out if _suits(x, weight, out) and _project(x, weight, [0, 0, rows], out) else None


def _project(x: torch.Tensor, weights: torch.Tensor, spans: list[int], out: torch.Tensor) -> bool:
    library = _library()
    if library is None:
        return False
    experts, (outputs, inputs) = len(spans) // 3, weights.shape[-2:]
    getattr(library, f"project_{_TYPES[weights.dtype]}")(
        x.data_ptr(),
        weights.data_ptr(),
        (ctypes.c_int64 * len(spans))(*spans),
        experts,
        inputs,
        outputs,
        out.data_ptr(),
        _threads(experts * outputs * inputs * weights.itemsize),
    )
    return True


def few_swiglu_experts(
    hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor | None:
    """[T, D] of hidden [T, D], chosen experts and their weights [T, K], up [E, 2I, D] and down [E, D, I], in one call.

    None if the kernel does not support this. There are no gradients.
    """
    (tokens, size), top_k, (experts, _, width) = hidden.shape, index.shape[1], down.shape
    few = FEW.get(hidden.dtype, 0)
    if not 0 < tokens * top_k <= few * experts or size % _MULTIPLE or index.dtype != torch.int64:
        return None
    hidden = hidden.contiguous()
    out = torch.empty_like(hidden)
    if width % _MULTIPLE or size < _LEAST or not _is_plain(hidden, up, down, out):
        return None
    library = _library()
    if library is None:
        return None
    index, weights = index.contiguous(), weights.float().contiguous()
    done = getattr(library, f"experts_{_TYPES[up.dtype]}")(
        hidden.data_ptr(),
        index.data_ptr(),
        weights.data_ptr(),
        up.data_ptr(),
        down.data_ptr(),
        out.data_ptr(),
        tokens,
        top_k,
        experts,
        size,
        width,
        few,
        _threads(min(experts, tokens * top_k) * 3 * size * width * up.itemsize),
    )
    return out if done else None


def swiglu(pre: torch.Tensor, inner: torch.Tensor) -> bool:
    """silu(gate) * up of rows [gate, up] [R, 2I], into `inner` [R, I]; False if the kernel does not support this."""
    library = _library() if inner.shape[1] % _MULTIPLE == 0 and _is_plain(pre, inner) else None
    if library is None:
        return False
    gate = getattr(library, f"gate_{_TYPES[pre.dtype]}")
    gate(pre.data_ptr(), inner.data_ptr(), *inner.shape, _threads(pre.nbytes))
    return True


def swiglu_backward(pre: torch.Tensor, grad: torch.Tensor, inner: torch.Tensor, grad_pre: torch.Tensor) -> bool:
    """The gradient [R, 2I] of `pre` from that of the result [R, I], and the result once more; False as above."""
    library = _library() if inner.shape[1] % _MULTIPLE == 0 and _is_plain(pre, grad, inner, grad_pre) else None
    if library is None:
        return False
    back = getattr(library, f"gate_back_{_TYPES[pre.dtype]}")
    back(*(tensor.data_ptr() for tensor in (pre, grad, inner, grad_pre)), *inner.shape, _threads(pre.nbytes))
    return True


def _threads(read: int) -> int:
    """For so many bytes."""
    return 1 if read < _THREAD_BYTES else torch.get_num_threads()


def _suits(x: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> bool:
    outputs, inputs = weights.shape[-2:]
    return inputs % _MULTIPLE == 0 and outputs >= _LEAST and _is_plain(x, weights, out)


def _is_plain(*tensors: torch.Tensor) -> bool:
    """Of one number type that there are kernels for, without gaps."""
    dtype = tensors[0].dtype
    if dtype not in _TYPES or is_in_torch_dispatch_mode():  # whoever counts torch's operations would see none
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator costs more than what it is asked, at every call of a layer
        if tensor.dtype != dtype or not tensor.is_contiguous():
            return False
    return True


@cache
def _library() -> Any:
    """The compiled kernel, or None."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    source = files("smolmoe.moe.kernels").joinpath(SOURCE).read_bytes()
    try:
        return _load(compiler, source)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
        logger.warning("the kernel for few tokens could not be built, using torch instead: %s", said or error)
        return None


def _load(compiler: str, source: bytes) -> Any:
    kept = _cache_folder() / f"few_tokens-{_key(compiler, source)}.so"
    if not kept.is_file():
        _build(compiler, source, kept)
    library = ctypes.CDLL(str(kept))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name in _TYPES.values():
        project, layer = getattr(library, f"project_{name}"), getattr(library, f"experts_{name}")
        project.restype, layer.restype = None, ctypes.c_int
        project.argtypes = [pointer, pointer, ctypes.POINTER(number), number, number, number, pointer, ctypes.c_int]
        layer.argtypes = [*[pointer] * 6, *[number] * 6, ctypes.c_int]
        for gate, pointers in ((getattr(library, f"gate_{name}"), 2), (getattr(library, f"gate_back_{name}"), 4)):
            gate.restype, gate.argtypes = None, [*[pointer] * pointers, number, number, ctypes.c_int]
    return library


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smolmoe"


def _key(compiler: str, source: bytes) -> str:
    """Of all that the result depends on: several machines may share a cache."""
    known = hashlib.sha256(source)
    for part in (compiler, *_FLAGS, platform.machine(), _processor(), torch.__version__):
        known.update(part.encode() + b"\0")
    return known.hexdigest()[:16]


def _processor() -> str:
    """What tells this processor's instructions from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _build(compiler: str, source: bytes, kept: Path) -> None:
    """Compile into the cache, all or nothing; with threads where the compiler and torch have the same kind."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        text, compiled, linked = (Path(folder) / name for name in ("few.c", "few.o", "few.so"))
        text.write_bytes(source)
        for threads in (["-fopenmp"], []):
            try:
                _call(compiler, *_FLAGS, *threads, "-c", str(text), "-o", str(compiled))
                # Not linked with a threads library: it must be the one that torch has loaded, which has the same names.
                _call(compiler, "-shared", str(compiled), "-o", str(linked))
                ctypes.CDLL(str(linked), os.RTLD_NOW)
                break
            except (OSError, subprocess.CalledProcessError):
                if not threads:
                    raise
        linked.replace(kept)


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)
