"""The type of each token of a vocabulary, from its text."""

from __future__ import annotations

from typing import Any

import torch

TYPES = ("word start", "word continuation", "number", "punctuation", "whitespace", "special")
WORD_START, CONTINUATION, NUMBER, PUNCTUATION, WHITESPACE, SPECIAL = range(len(TYPES))
_METASPACE = "▁"


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token alone, a leading space included."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [_text(tokenizer, token) for token in tokens]


def token_types(tokenizer: Any, size: int) -> torch.Tensor:
    """[size] int64, the type of every token id by its text alone; ids that the tokenizer lacks are special."""
    special = set(tokenizer.all_special_ids) | {
        index for index, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    known = [index for index in range(min(size, len(tokenizer))) if index not in special]
    types = torch.full((size,), SPECIAL)
    if known:
        types[known] = torch.tensor([_type(text) for text in token_texts(tokenizer, known)])
    return types


def types_in_context(types: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """[W, S] of inputs [W, S]: letters after white space or a special token also start a word.

    Args:
        types: of every token id.
    """
    found = types[inputs]
    after_gap = (found[:, :-1] == WHITESPACE) | (found[:, :-1] == SPECIAL)
    found[:, 1:][after_gap & (found[:, 1:] == CONTINUATION)] = WORD_START
    return found


def _text(tokenizer: Any, token: str | None) -> str:
    if token is None:
        return ""
    text = str(tokenizer.convert_tokens_to_string([token]))
    # Decoders of this kind drop a text's first space.
    return f" {text}" if token.startswith(_METASPACE) and not text.startswith(" ") else text


def _type(text: str) -> int:
    bare = text.strip()
    if not bare:
        return WHITESPACE
    if any(character.isalpha() for character in bare):
        return WORD_START if text[0].isspace() else CONTINUATION
    return NUMBER if any(character.isdigit() for character in bare) else PUNCTUATION
