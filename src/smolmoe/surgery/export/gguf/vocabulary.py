"""How a tokenizer that llama.cpp's converter does not recognise is written into a GGUF file.

llama.cpp has the pre-tokenizers of known models by name. The converter recognises a tokenizer by its tokens of one
text, so it never recognises a custom tokenizer, even if that splits text as a known one does. This module compares
the splits themselves, on text designed to distinguish them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from smolmoe.errors import SourceError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
# llama.cpp's names, each with the equivalent rules of the tokenizers library. Rules that differ only in
# whether a word that is a token is merged are distinguished by `ignore_merges`.
_SPLITS: dict[str, tuple[dict[str, Any], ...]] = {
    "gpt-2": (),
    "smollm": ({"type": "Digits", "individual_digits": True},),
    "llama-bpe": ({"pattern": _WORDS + r"|\p{N}{1,3}" + _TAIL},),
    "dbrx": ({"pattern": _WORDS + r"|\p{N}{1,3}" + _TAIL},),
    "qwen2": ({"pattern": _WORDS + r"|\p{N}" + _TAIL},),
}
_IGNORES_MERGES = ("llama-bpe",)
PROBE = (
    "I've said she'll go; THEY'RE 12 or 1234 or 1234567.89 km away, it's 3x4=12!\r\n\r\n  def f(x):\n\treturn x ** 2\n"
    '   \n\n \t end... "quoted" (round) [square] {curly} <tag/> http://a.b/c?d=e&f=1  naïve café Ünïcode Ελληνικά '
    "русский 中文字符 日本語 한국어 ٣٤٥ ½ 🚀🙂 'S 'Re don't   x  "
)


@dataclass(frozen=True)
class Vocabulary:
    """How the converter should write a tokenizer.

    Attributes:
        kind: "bytes": byte-level BPE with its merges; "pieces": character-level BPE with byte fallback, as in
            SentencePiece; "own": the converter's default.
        pre: llama.cpp's name of the pre-tokenizer, if the converter does not recognise the tokenizer.
        scores: token -> score by which llama.cpp merges pieces: the earlier a merge, the higher.
    """

    kind: Literal["bytes", "pieces", "own"]
    pre: str | None = None
    scores: dict[str, float] | None = None


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """How to write a transformers tokenizer.

    Raises:
        SourceError: llama.cpp has no equivalent; states what differs.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # GLM's own tokenizer has roles that the converter marks by name.
    if backend is None or "[gMASK]" in tokenizer.get_added_vocab():
        return Vocabulary("own")
    rules = json.loads(backend.to_str())
    model = rules["model"]
    if model["type"] != "BPE":
        raise _unlike(f"a model of type {model['type']}; only BPE is supported")
    if model.get("byte_fallback"):
        return Vocabulary("pieces", scores=_scores(model["merges"]))
    if rules.get("normalizer") is not None and rules["normalizer"]["type"] != "NFC":
        raise _unlike(f"a normaliser ({rules['normalizer']['type']}), which llama.cpp does not support")
    return Vocabulary("bytes", pre=_pre_tokenizer(backend, bool(model.get("ignore_merges"))))


def _scores(merges: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        found.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), -float(rank))
    return found


def _pre_tokenizer(backend: Any, ignore_merges: bool) -> str:
    ours = _split(backend.pre_tokenizer)
    near = []
    for name in _SPLITS:
        if _split(_known(name)) == ours:
            near.append(name)
            if (name in _IGNORES_MERGES) == ignore_merges:
                return name
    if near:
        what = "looks up whole words before merging" if ignore_merges else "merges every word"
        raise _unlike(f"the splits of {near[0]}, but it {what}, unlike llama.cpp with these splits")
    raise _unlike(f"a pre-tokenizer that splits differently from those of {', '.join(_SPLITS)}")


def _split(pre_tokenizer: Any) -> list[str] | None:
    return None if pre_tokenizer is None else [piece for piece, _ in pre_tokenizer.pre_tokenize_str(PROBE)]


def _known(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    for step in _SPLITS[name]:
        if "pattern" in step:
            steps.append(pre_tokenizers.Split(Regex(step["pattern"]), "isolated"))
        else:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
    patterns = any("pattern" in step for step in _SPLITS[name])
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns))
    return pre_tokenizers.Sequence(steps)


def _unlike(what: str) -> SourceError:
    return SourceError(
        f"the tokenizer has {what}.", field="tokenizer", value=None, fix="Export to a native class instead."
    )
