"""Tokenised documents on disk, read through a memory map."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.vocabulary import check_token
from smolmoe.errors import DataError


@dataclass(frozen=True)
class TokenStore:
    """N tokens of D concatenated documents, each ending with an end-of-text token.

    Attributes:
        ids: token ids [N], uint16 or uint32.
        starts: of each document, and N at the end: int64 [D + 1].
        domain_ids, source_ids: of each document, int16 [D].
        streamed: for each source, whether its documents are read in their order.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    domain_ids: NDArray[np.int16]
    source_ids: NDArray[np.int16]
    streamed: tuple[bool, ...] = (False,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document [D]."""
        return np.diff(self.starts)

    def lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the given documents."""
        return self.starts[documents + 1] - self.starts[documents]

    def document(self, index: int) -> NDArray[Any]:
        """The token ids of a document, its end-of-text token last."""
        return np.asarray(self.ids[self.starts[index] : self.starts[index + 1]])

    def documents(self) -> Iterator[NDArray[Any]]:
        """The token ids of each document, read lazily."""
        return (self.document(index) for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle a memory map as the name of its file, without its contents."""
        state = dict(self.__dict__)
        if isinstance(self.ids, np.memmap):
            state["ids"] = (str(self.ids.filename), self.ids.dtype.str)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["ids"], tuple):
            file, dtype = state["ids"]
            state["ids"] = np.memmap(file, dtype=dtype, mode="r")
        self.__dict__.update(state)


class StoreWriter:
    """Writes a TokenStore to `STEM.ids` and `STEM.index.npz`, incrementally.

    Args:
        stem: path without suffix.
        dtype: of the token ids.
    """

    def __init__(self, stem: Path, dtype: str):
        self._stem = stem
        self._dtype = np.dtype(dtype)
        self._file = _ids_file(stem).open("wb")
        self._ends = array("q", [0])
        self._domains = array("h")
        self._sources = array("h")

    @property
    def tokens(self) -> int:
        return self._ends[-1]

    @property
    def documents(self) -> int:
        return len(self._ends) - 1

    def add(self, documents: Sequence[Sequence[int]], domains: Sequence[int], source: int) -> None:
        """Append documents of one source; `domains` has the domain id of each."""
        np.fromiter(chain.from_iterable(documents), dtype=self._dtype).tofile(self._file)
        for ids in documents:
            self._ends.append(self._ends[-1] + len(ids))
        self._domains.extend(domains)
        self._sources.extend([source] * len(documents))

    def finish(self) -> None:
        """Write the index, which completes the store."""
        self._file.close()
        np.savez(
            _index_file(self._stem),
            starts=np.array(self._ends, dtype=np.int64),
            domain_ids=np.array(self._domains, dtype=np.int16),
            source_ids=np.array(self._sources, dtype=np.int16),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_store(stem: Path, dtype: str, streamed: tuple[bool, ...]) -> TokenStore:
    """The store that a StoreWriter wrote.

    Raises:
        OSError, ValueError, KeyError: its files are missing, damaged or of the wrong size.
    """
    with np.load(_index_file(stem)) as index:
        starts, domain_ids, source_ids = (index[name] for name in ("starts", "domain_ids", "source_ids"))
    size = int(starts[-1]) * np.dtype(dtype).itemsize
    if _ids_file(stem).stat().st_size != size:
        raise ValueError(f"{_ids_file(stem).name} does not have the {size} bytes that its index says")
    if size == 0:  # an empty file cannot be mapped
        return TokenStore(np.empty(0, dtype=dtype), starts, domain_ids, source_ids, streamed)
    return TokenStore(np.memmap(_ids_file(stem), dtype=dtype, mode="r"), starts, domain_ids, source_ids, streamed)


def _ids_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.ids")


def _index_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.index.npz")


def encode_documents(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, with the tokenizer's end-of-text token after them.

    Raises:
        DataError: the tokenizer has no end-of-text token.
    """
    end = end_of_text(tokenizer)
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [[*ids, end] for ids in encoded["input_ids"]]


def end_of_text(tokenizer: Any) -> int:
    """The id of the tokenizer's end-of-text token.

    Raises:
        DataError: it has none, or one that the model does not have.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-text token to separate documents.",
            field="tokenizer",
            value=getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__,
            fix="Add one, e.g. tokenizer.eos_token = '<|endoftext|>', and save it again.",
        )
    return check_token(tokenizer, int(tokenizer.eos_token_id), "end-of-text token")


def id_type(tokenizer: Any) -> str:
    """The smallest unsigned dtype for all ids of the tokenizer."""
    largest = max(end_of_text(tokenizer), *tokenizer.get_vocab().values())
    return "<u2" if largest < 2**16 else "<u4"
