"""Matching of a teacher's log-probabilities to the student's tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.errors import RequestError

_NAMED = 5  # differing tokens to name
ROUNDING = 1e-2  # tolerance of the sum of probabilities, which are sent as rounded decimals

Token = list[Any]  # [token, bytes or None, log-probability]


class Mismatch(Exception):  # noqa: N818 - of one answer; the caller decides what follows
    """The log-probabilities do not fit the student's tokens; `tokens` are the differing ones."""

    def __init__(self, reason: str, tokens: Sequence[str] = ()):
        named = ", ".join(map(repr, tokens[:_NAMED]))
        more = f" and {len(tokens) - _NAMED} more" if len(tokens) > _NAMED else ""
        super().__init__(f"{reason}: {named}{more}" if tokens else reason)
        self.tokens = list(tokens)


@dataclass(frozen=True)
class Targets:
    """One answer's S tokens: the text that the student tokenises into them, their ids [S], and the candidates with
    their log-probabilities (nats), [S][variable].
    """

    text: str
    ids: list[int]
    candidates: list[list[int]]
    logprobs: list[list[float]]


class StudentTokens:
    """The mapping from bytes to a tokenizer's tokens."""

    def __init__(self, tokenizer: Any):
        """Raises RequestError if the tokenizer's tokens cannot be compared as bytes."""
        self.tokenizer = tokenizer
        self._id_of: dict[bytes, int | None] = {}  # None: several tokens
        for name, content in _contents(tokenizer):
            self._id_of[content] = None if content in self._id_of else name
        for name, byte in _fallbacks(tokenizer):
            # The tokenizer uses a byte's own token only if no other token has this content.
            self._id_of.setdefault(byte, name)
        self._special = set(tokenizer.all_special_ids)

    def match(self, response: str, logprobs: Sequence[list[Any]]) -> Targets:
        """The log-probabilities of an answer for the student's tokens.

        Candidates without text are skipped: some endpoints send all control tokens like this, so they cannot be
        distinguished. Their probability becomes part of the remaining mass.

        Args:
            logprobs: for each token [token, bytes or None, log-probability, candidates], as in `Answer`.

        Raises:
            Mismatch: a token matches none or several of the student's; the student tokenises the response differently;
                the probabilities add up to more than 1.
        """
        logprobs = [[*entry[:3], [token for token in entry[3] if _bytes(token)]] for entry in logprobs]
        unknown = dict.fromkeys(
            str(token[0])
            for entry in logprobs
            for token in (entry[:3], *entry[3])
            if self._id_of.get(_bytes(token)) is None
        )
        if unknown:
            raise Mismatch("not exactly one of the student's tokens each", list(unknown))
        ids = [self._id(entry) for entry in logprobs]
        text, own = self._cut(response, ids)
        kept = logprobs[: len(own)]
        candidates = [[self._id(candidate) for candidate in entry[3]] for entry in kept]
        if any(len(set(names)) < len(names) for names in candidates):
            raise Mismatch("two candidates of one token are the same token for the student")
        return Targets(
            text,
            own,
            candidates,
            [_checked([candidate[2] for candidate in entry[3]]) for entry in kept],
        )

    def _cut(self, response: str, ids: list[int]) -> tuple[str, list[int]]:
        """The response as the student tokenises it, without the end of text, and its tokens.

        A tokenizer that prepends a space to every text needs an answer's leading space removed.
        """
        differing: list[str] = []
        for text in (response, response[1:]) if response.startswith(" ") else (response,):
            own: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            spoken = ids[:-1] if ids and ids[-1] in self._special and len(ids) == len(own) + 1 else ids
            if spoken == own:
                return text, own
            differing = differing or self._first_difference(spoken, own)
        raise Mismatch("the student tokenizes the response differently, first at", differing)

    def _id(self, token: Token) -> int:
        found = self._id_of[_bytes(token)]
        assert found is not None  # checked before
        return found

    def _first_difference(self, theirs: list[int], ours: list[int]) -> list[str]:
        at = next((at for at, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), None)
        at = min(len(theirs), len(ours)) if at is None else at
        return [str(self.tokenizer.decode(ids[at : at + 1])) for ids in (theirs, ours) if ids[at : at + 1]]


def _checked(logprobs: list[float]) -> list[float]:
    total = math.fsum(math.exp(value) for value in logprobs)
    if not total <= 1 + ROUNDING:
        raise Mismatch(f"the probabilities of one token's candidates add up to {total:.3g}")
    return logprobs


def _bytes(token: Token) -> bytes:
    return str(token[0]).encode() if token[1] is None else bytes(token[1])


def _contents(tokenizer: Any) -> Iterator[tuple[int, bytes]]:
    """(id, bytes) of every token, except those of a byte fallback."""
    added = {name: token.content.encode() for name, token in tokenizer.added_tokens_decoder.items()}
    letters = _byte_letters() if _decoder(tokenizer, "ByteLevel") else None
    if letters is None and not any(_decoder(tokenizer, kind) for kind in ("ByteFallback", "Metaspace")):
        raise RequestError(
            "its tokens cannot be compared with a teacher's: it is neither byte-level nor of SentencePiece.",
            field="student",
            value=type(tokenizer).__name__,
            fix="Omit `student`: the log-probabilities are then stored with the teacher's tokens.",
        )
    for name in range(len(tokenizer)):
        piece = tokenizer.convert_ids_to_tokens(name)
        if name in added:
            yield name, added[name]
        elif piece is None or (letters is None and _is_fallback(piece)):
            continue
        elif letters is None:
            yield name, piece.replace("▁", " ").encode()
        elif all(letter in letters for letter in piece):
            yield name, bytes(letters[letter] for letter in piece)


def _fallbacks(tokenizer: Any) -> Iterator[tuple[int, bytes]]:
    """(id, byte) of a byte fallback's tokens, such as <0x0A>."""
    if not _decoder(tokenizer, "ByteFallback"):
        return
    for piece, name in tokenizer.get_vocab().items():
        if _is_fallback(piece):
            yield name, bytes([int(piece[1:-1], 16)])


def _is_fallback(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _decoder(tokenizer: Any, kind: str) -> bool:
    """Whether the tokenizer's decoder has a step of this kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str())["decoder"] if backend is not None else None
    steps = decoder.get("decoders", [decoder]) if decoder else []
    return any(step["type"] == kind for step in steps)


def _byte_letters() -> dict[str, int]:
    """The letters of byte-level tokenizers: a visible byte is itself, others are letters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in visible}
    for byte in range(256):
        if byte not in visible:
            letters[chr(0x100 + len(letters) - len(visible))] = byte
    return letters
