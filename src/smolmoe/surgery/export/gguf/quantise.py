"""llama.cpp's own quantisation of a float32 GGUF file, and its importance matrix.

The types and the fallbacks are llama.cpp's. `llama_model_quantize` comes with llama-cpp-python; the importance matrix
is computed by the program llama-imatrix, which is not part of that package.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import expanded
from smolmoe.errors import RequestError
from smolmoe.results.gguf import Importance
from smolmoe.surgery.export.gguf.converter import ENVIRONMENT, PLACES
from smolmoe.surgery.export.gguf.engine import available, silence
from smolmoe.surgery.imports.gguf import open_gguf, value_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Name -> the type of most of its weights; llama.cpp gives some weights a larger one.
K_QUANTS = {"q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K"}
BLOCK = 256  # values of a row that a K type stores together
FALLBACK = "llama.cpp writes Q5_0, Q5_1 or Q8_0 there instead of Q4_K, Q5_K or Q6_K"
PROGRAM = "llama-imatrix"
CHUNK = 512  # tokens of a sequence, as in llama.cpp
Weights = Mapping[str, "NDArray[Any]"]  # tensor -> float32 weight of each column, expert by expert


def check_quantiser() -> None:
    """Raises RequestError if llama.cpp's library is not installed."""
    if not available():
        raise RequestError(
            "llama.cpp itself quantises, and llama-cpp-python is not installed.",
            field="quant",
            value=None,
            fix="pip install 'smolmoe[gguf]', or use q8_0, which the converter writes.",
        )


def odd_rows(widths: Iterable[int]) -> tuple[int, ...]:
    """The widths of rows that a K type cannot store, ascending."""
    return tuple(sorted({width for width in widths if width % BLOCK}))


def quantise(source: Path, out: Path, quant: str, importance: Weights | None = None) -> dict[str, str]:
    """Quantise a float32 file; returns the type of each tensor.

    Args:
        quant: one of `K_QUANTS`.

    Raises:
        RequestError: llama.cpp refuses.
    """
    import llama_cpp

    silence()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant.upper()}")
    if importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # an entry without a name ends it
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = entries
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings)):
        raise RequestError("llama.cpp cannot quantise this model.", field="quant", value=quant, fix="Use q8_0.")
    return {tensor.name: tensor.tensor_type.name for tensor in open_gguf(out).tensors}


def find_program(llama_cpp: str | Path | None) -> Path:
    """llama-imatrix: in a checkout or installation of llama.cpp, or on PATH.

    Raises:
        RequestError: not found.
    """
    named = llama_cpp or os.environ.get(ENVIRONMENT)
    root = expanded(named) if named else None
    folders = [root / place / where for place in PLACES for where in ("", "bin", "build/bin")] if root else []
    for folder in folders:
        if os.access(folder / PROGRAM, os.X_OK):
            return folder / PROGRAM
    if found := shutil.which(PROGRAM):
        return Path(found)
    raise RequestError(
        f"{PROGRAM}, which computes the importance matrix, was not found.",
        field="llama_cpp",
        value=None if named is None else str(named),
        fix=f"Build it in a checkout of llama.cpp (cmake -B build && cmake --build build --target {PROGRAM}), or add "
        "an installation's programs to PATH.",
    )


def importance_of(program: Path, model: Path, text: str | Path, context: int) -> tuple[Importance, Weights]:
    """The importance matrix of a float32 file on a text: mean squares of each weight's inputs.

    Args:
        text: a file of documents, as for training.
        context: the model's, in tokens.

    Raises:
        RequestError: llama-imatrix failed, e.g. on a text shorter than two of its sequences.
        DataError: the text cannot be read.
    """
    from smolmoe.data.text import read_documents

    with TemporaryDirectory() as folder:
        plain, out = Path(folder) / "text.txt", Path(folder) / "importance.gguf"
        plain.write_text("\n\n".join(document.text for document in read_documents(text)), encoding="utf-8")
        chunk = 1 << min(CHUNK, context).bit_length() - 1  # it must divide llama.cpp's batch of 2,048
        command = [program, "-m", model, "-f", plain, "-o", out, "-c", chunk, "--no-ppl", "-ngl", 0]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode or not out.is_file():
            lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise RequestError(
                f"{PROGRAM} failed: {lines[-1] if lines else 'no output'}",
                field="importance",
                value=str(text),
                fix=f"The text must have at least {2 * chunk} tokens.",
            )
        return _read(out, text)


def _read(file: Path, text: str | Path) -> tuple[Importance, Weights]:
    """Sums of squares divided by counts; 1 for an expert without tokens, as in llama-quantize."""
    import numpy as np

    reader = open_gguf(file, model=False)
    values = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    weights, unused, experts = {}, 0, 0
    for name, sums in values.items():
        if not name.endswith(".in_sum2"):
            continue
        tensor = name.removesuffix(".in_sum2")
        counts = values[f"{tensor}.counts"].reshape(-1, 1)
        rows = sums.reshape(len(counts), -1)
        weights[tensor] = np.where(counts > 0, rows / np.maximum(counts, 1), 1).astype(np.float32).ravel()
        if "ffn_down_exps" in tensor:
            unused, experts = unused + int((counts == 0).sum()), experts + len(counts)
    tokens = int(value_of(reader, "imatrix.chunk_count")) * int(value_of(reader, "imatrix.chunk_size"))
    return Importance(str(text), tokens, unused, experts), weights
