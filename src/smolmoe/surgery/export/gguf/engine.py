"""llama.cpp itself, through llama-cpp-python: a GGUF file's tokens, logits and chosen experts.

Keys and values are kept in float32, without flash attention: by default llama.cpp rounds them to
float16, which changes logits hundreds of times more than the conversion does.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from smolmoe.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor

_CHOICE = re.compile(r"ffn_moe_topk-(\d+)$")


def available() -> bool:
    """Whether llama.cpp is installed."""
    return find_spec("llama_cpp") is not None


@dataclass
class Evaluated:
    """llama.cpp's output for one sequence: logits [S, V], and each layer's chosen experts [S, K]."""

    logits: Tensor
    chosen: dict[int, Tensor] = field(default_factory=dict)


class Engine:
    """A GGUF file loaded in llama.cpp, on the CPU.

        with Engine(path, context=128) as engine:
            engine.evaluate(ids).logits

    Args:
        path: of the file.
        context: the longest sequence, in tokens.
        threads: number of CPU threads.

    Attributes:
        seconds, tokens: totals of `evaluate` so far.

    Raises:
        VerificationError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, context: int, threads: int = 1):
        import llama_cpp

        self._api: Any = llama_cpp
        self._callbacks: list[Any] = []
        self._seen: dict[int, Any] = {}
        self._expected = 0
        self.seconds, self.tokens = 0.0, 0
        silence()
        self._api.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise VerificationError("llama.cpp cannot load the file.", field="out", value=str(path))
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._size = int(self._api.llama_vocab_n_tokens(self._vocab))
        self._context = self._api.llama_init_from_model(self._model, self._settings(context, threads))
        self._batch = self._api.llama_batch_init(context, 0, 1)

    def _settings(self, context: int, threads: int) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
        settings.flash_attn_type = 0
        settings.no_perf = True
        callback = type(settings.cb_eval)(self._watch)
        self._callbacks.append(callback)
        settings.cb_eval = callback
        return settings

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, including the special tokens that the model adds."""
        data = text.encode()
        room = len(data) + 8
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, True, True)
        return list(ids[:count])

    def evaluate(self, ids: Sequence[int], *, at_once: int | None = None) -> Evaluated:
        """Evaluate a sequence, in one pass or (with a KV cache) in steps of `at_once` tokens."""
        import torch

        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        step = at_once or len(ids)
        parts: list[Tensor] = []
        chosen: dict[int, list[Tensor]] = {}
        start = time.perf_counter()
        for first in range(0, len(ids), step):
            parts.append(torch.from_numpy(self._decode(ids[first : first + step], first)))
            for layer, indices in self._seen.items():
                chosen.setdefault(layer, []).append(torch.from_numpy(indices))
        self.seconds += time.perf_counter() - start
        self.tokens += len(ids)
        return Evaluated(torch.cat(parts), {layer: torch.cat(found) for layer, found in chosen.items()})

    def _decode(self, ids: Sequence[int], first: int) -> Any:
        batch = self._batch
        batch.n_tokens = self._expected = len(ids)
        self._seen.clear()
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, first + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
        if self._api.llama_decode(self._context, batch):
            raise VerificationError("llama.cpp cannot run the file.", field="tokens", value=len(ids))
        logits = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(len(ids), self._size)).copy()

    def _watch(self, tensor: Any, asks: bool, _data: Any) -> bool:
        """llama.cpp's callback: called first to ask whether a tensor is wanted, then with its values."""
        library = _tensors()
        found = _CHOICE.match(library.ggml_get_name(tensor).decode())
        if asks or found is None:
            return found is not None
        nbytes = library.ggml_nbytes(tensor)
        values = np.empty(nbytes // 4, dtype=np.int32)
        library.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, nbytes)
        top_k = library.ggml_nelements(tensor) // self._expected
        # A view of the sorted experts of each token: K of each row of E, the last row is shorter.
        row = (len(values) - top_k) // (self._expected - 1) if self._expected > 1 else top_k
        rows = np.stack([values[token * row : token * row + top_k] for token in range(self._expected)])
        self._seen[int(found[1])] = rows.astype(np.int64)
        return True


@cache
def silence() -> Any:
    """Silences llama.cpp, which logs everything to the terminal. The callback must live as long as the process."""
    import llama_cpp

    callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _tensors() -> Any:
    """The functions of ggml that llama-cpp-python does not wrap."""
    global _LIBRARY
    if _LIBRARY is None:
        import llama_cpp

        folder = Path(llama_cpp.__file__).parent / "lib"
        names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
        library = ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))
        library.ggml_get_name.restype, library.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        library.ggml_nbytes.restype, library.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        library.ggml_nelements.restype, library.ggml_nelements.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        size = ctypes.c_size_t
        library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, size, size]
        _LIBRARY = library
    return _LIBRARY


_LIBRARY: Any = None
