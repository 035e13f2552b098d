"""Tokenizers with more tokens than their model: what the model cannot read is refused where text becomes ids.

Such pairs are published (CodeLlama's tokenizer has four tokens past its model's vocabulary) and work as long as no text
holds one of these tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import read_json
from smolmoe.errors import DataError

_EXCERPT = 24  # characters on each side of a token that is named


class UnknownTokenError(DataError):
    """A text holds a token that the model does not have.

    Attributes:
        index: of the text among those that were tokenised together.
    """

    def __init__(self, message: str, index: int = 0, *, field: str = "text", value: object = None):
        super().__init__(message, field=field, value=value, fix="Take the token out of the text.")
        self.index = index

    def at(self, place: str, field: str, value: object) -> UnknownTokenError:
        """The same, with the place of the text."""
        return UnknownTokenError(f"{place}: {self.message}", self.index, field=field, value=value)


def within_vocabulary(tokenizer: Any, size: int | None) -> Any:
    """The tokenizer, which now raises UnknownTokenError where a text becomes an id past a model's vocabulary.

    One whose ids are all below `size` stays as it is. Its `unchecked` makes ids of any text.
    """
    if size is None or max(tokenizer.get_vocab().values(), default=-1) < size:
        return tokenizer
    tokenizer.model_vocabulary = size
    # Whatever turns text into ids, also libraries that are handed the tokenizer, calls one of its two methods.
    tokenizer.__class__ = _bounded(type(tokenizer))
    return tokenizer


def _bounded(kind: type[Any]) -> type[Any]:
    class Bounded(kind):
        def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
            found = super().__call__(text, *args, **options)
            _check(self, found["input_ids"], text)
            return found

        def encode(self, text: Any, *args: Any, **options: Any) -> Any:
            found = super().encode(text, *args, **options)
            _check(self, found, text)
            return found

        def unchecked(self, *args: Any, **options: Any) -> Any:
            return super().__call__(*args, **options)

        def __reduce__(self) -> Any:
            """Other processes get the plain tokenizer and bind it again: they cannot look this class up by its name."""
            plain = object.__new__(kind)
            plain.__dict__.update(self.__dict__)
            return within_vocabulary, (plain, self.model_vocabulary)

    # Saved files name the class.
    Bounded.__name__, Bounded.__qualname__, Bounded.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Bounded


def check_token(tokenizer: Any, token: int, what: str) -> int:
    """A token of the tokenizer's own, such as its end of text.

    Raises:
        UnknownTokenError: the model does not have it.
    """
    size = getattr(tokenizer, "model_vocabulary", None)
    if size is not None and token >= size:
        name = tokenizer.convert_ids_to_tokens(token)
        raise UnknownTokenError(
            f"the {what} {name!r} has id {token:,}, the model's vocabulary ends at {size - 1:,}.",
            0,
            field="tokenizer",
            value=getattr(tokenizer, "name_or_path", ""),
        )
    return token


@contextmanager
def naming_rows(
    data: object, places: Sequence[str] = (), *, field: str = "data", what: str = "row", first: int = 0
) -> Iterator[None]:
    """Within, a text with an unknown token is named by its place in `data`.

    Args:
        places: of the texts; without them they are numbered, the one before them being number `first`.
    """
    try:
        yield
    except UnknownTokenError as error:
        place = places[error.index] if places else f"{what} {first + error.index + 1}"
        raise error.at(place, field, data) from None


def _check(tokenizer: Any, ids: Any, text: Any) -> None:
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    nested = bool(rows) and isinstance(rows[0], list)
    for index, row in enumerate(rows if nested else [rows]):
        largest = max(row, default=-1)
        if largest < tokenizer.model_vocabulary:
            continue
        token = next(token for token in row if token >= tokenizer.model_vocabulary)
        name = str(tokenizer.convert_ids_to_tokens(token))
        said = text[index] if nested and isinstance(text, list | tuple) else text
        raise UnknownTokenError(
            f"token {name!r} has id {token:,}, the model's vocabulary ends at {tokenizer.model_vocabulary - 1:,}.",
            index,
            value=_excerpt(said, name),
        )


def _excerpt(text: Any, token: str) -> str:
    text = text if isinstance(text, str) else str(text)
    at = max(0, text.find(token))
    return text[max(0, at - _EXCERPT) : at + len(token) + _EXCERPT]


def spare_tokens(folder: Path, size: int) -> list[str]:
    """The tokens of a folder's tokenizer past a vocabulary of `size`, from its files alone, without transformers.

    Empty if no tokenizer can be read from the files: the code that loads it reports the problem.
    """
    try:
        return _spare_tokens(folder, size)
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return []


def _spare_tokens(folder: Path, size: int) -> list[str]:
    found: dict[int, str] = {}
    whole = _read(folder / "tokenizer.json")
    vocabulary = (whole.get("model") or {}).get("vocab") or _read(folder / "vocab.json")
    if isinstance(vocabulary, dict):
        found |= {number: token for token, number in vocabulary.items() if number >= size}
    else:
        found |= {size + at: str(entry[0]) for at, entry in enumerate(vocabulary[size:])}
    found |= {entry["id"]: entry["content"] for entry in whole.get("added_tokens") or ()}
    added = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    found |= {int(number): entry["content"] for number, entry in added.items()}
    found |= {number: token for token, number in _read(folder / "added_tokens.json").items()}
    return [found[number] for number in sorted(found) if number >= size]


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}
