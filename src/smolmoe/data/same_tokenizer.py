"""Whether two tokenizers tokenise text equally: compared as loaded and by their output, not by their files.

The same tokenizer can have different files: merges as strings or pairs, omitted default keys, vocab.json and merges.txt
or tokenizer.model in addition to tokenizer.json, another class name. So the vocabulary and the merges are compared as
loaded, and the other rules (normaliser, splitting, added tokens) by their output on test texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from smolmoe.data.tokens import end_of_text

SHOWN = 5  # differing tokens to name
# Normalisers and pre-tokenizers differ in case, accents, widths, spaces, digits, punctuation, contractions, scripts.
_TRIALS = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space, trailing space ",
    "two  three   four    spaces\tone tab\t\ttwo tabs",
    "a line\nanother\n\nafter an empty one\r\nand of Windows\n   indented\n\n\n",
    "I'll say it's what they've said; we'd DON'T, you're O'Neill's.",
    "I\u2019m \u201cquoted\u201d \u2013 and\u2014dashed\u2026",
    "0 7 42 123 4567 89012 3.14159 1,000,000 -5 1e-9 50% $9.99 #1 2x 10km 2024-01-31",
    "ALL CAPS, camelCase, snake_case, kebab-case, PascalCase, x1y2z3, ABCdef",
    "def add(a, b=[]):\n    return {a: b[0], 'k': \"v\"}  # comment\n\tif a != b && !c || d >= e: pass",
    "https://example.org/path?q=a&b=1#top me@mail.org C:\\dir\\file.txt ~/.cache/*.json",
    "!!! ??? ... ,,, ;; :: ((())) [[]] {{}} <<>> // \\\\ ++ -- == ** __ || && ^^ ~~ `` @@ ## $$ %%",
    "naïve café Über straße, as marks: cafe\u0301 u\u0308ber A\u030a",
    "\ufb01ne \u2167 \u00bd \u00b2 \u338f \uff21\uff22\uff23\u3000\uff11\uff12",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "你好\uff0c世界。 これはペンです。 カタカナ 한국어 문장입니다.",
    "😀👍🏽 👩\u200d👩\u200d👧 \u2211\u222b\u221a\u2260\u2264\u2192 \u00a9 \u2122",
    "\u00a0nbsp \u200bzero\u200dwidth \u3000wide \u2028line \ufeffmark",
)
_MARKUP = re.compile(r"<[^<>]{1,40}>|\[[^\[\]]{1,40}\]")


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of the tokenisation and the end-of-text token, independent of files and classes."""
    alike = [_vocabulary(tokenizer), _tables(tokenizer), _trials(tokenizer), end_of_text(tokenizer)]
    return hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()


def tokenizer_difference(
    one: Any, other: Any, *, names: tuple[str, str] = ("one", "other"), ends: bool = True
) -> str | None:
    """How two tokenizers differ, in words; None if they tokenise equally.

    Args:
        names: of the two, for the text.
        ends: whether the end-of-text token counts.
    """
    vocabularies = _vocabulary(one), _vocabulary(other)
    if vocabularies[0] != vocabularies[1]:
        return _other_tokens(*vocabularies, names)
    (kind, merges), (kind2, merges2) = _tables(one), _tables(other)
    if kind != kind2:
        return f"the {names[0]}'s model is {kind}, but the {names[1]}'s is {kind2}"
    if merges != merges2:
        at = next((i for i, (a, b) in enumerate(zip(merges, merges2, strict=False)) if a != b), None)
        if at is None:
            return f"{len(merges):,} merges and {len(merges2):,}"
        return f"merge {at} is {merges[at]} / {merges2[at]} ({names[0]} / {names[1]})"
    for (text, first), (_, second) in zip(_trials(one), _trials(other), strict=True):
        if first != second:
            place = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
            return f"for {text!r} the {names[0]} gives ids {_from(first, place)}, the {names[1]} {_from(second, place)}"
    if ends and one.eos_token_id != other.eos_token_id:
        return f"the {names[0]}'s end-of-text token is {one.eos_token!r}, but the {names[1]}'s is {other.eos_token!r}"
    return None


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    return dict(tokenizer.get_vocab())


def _tables(tokenizer: Any) -> tuple[str, list[Any]]:
    """Kind of model, and its content in addition to the vocabulary: a BPE's merges in order, a unigram's scores."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "Python", []
    model = json.loads(backend.to_str())["model"]
    scores = model["vocab"] if isinstance(model.get("vocab"), list) else []
    return str(model["type"]), model.get("merges") or scores


def _trials(tokenizer: Any) -> list[tuple[str, list[int]]]:
    """Texts and their ids, including every token that may be split off inside a text."""
    vocabulary = tokenizer.get_vocab()
    special = {*tokenizer.get_added_vocab(), *(token for token in vocabulary if _MARKUP.fullmatch(token))}
    inside = [f"one{token}two {token} 3" for token in sorted(special & vocabulary.keys(), key=vocabulary.__getitem__)]
    texts = [*_TRIALS, *inside]
    call = getattr(tokenizer, "unchecked", tokenizer)  # two may differ in tokens that their models do not have
    ids = call(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [(text, list(row)) for text, row in zip(texts, ids, strict=True)]


def _other_tokens(one: Mapping[str, int], other: Mapping[str, int], names: tuple[str, str]) -> str:
    first = {number: token for token, number in one.items()}
    second = {number: token for token, number in other.items()}
    unlike = [number for number in sorted({*first, *second}) if first.get(number) != second.get(number)]
    named = ", ".join(f"{number} is {_shown(first, number)} / {_shown(second, number)}" for number in unlike[:SHOWN])
    more = f" and {len(unlike) - SHOWN:,} more" if len(unlike) > SHOWN else ""
    return f"{len(one):,} tokens and {len(other):,}; {names[0]}'s / {names[1]}'s: {named}{more}"


def _shown(vocabulary: Mapping[int, str], number: int) -> str:
    return repr(vocabulary[number]) if number in vocabulary else "nothing"


def _from(ids: list[int], place: int) -> str:
    """A few ids around the first that differs."""
    shown = ids[max(0, place - 1) : place + 4]
    return ("... " if place > 1 else "") + " ".join(map(str, shown))
