"""The MoE must tokenize text as the dense model does. Copying the tokenizer's files is not enough for that.

transformers picks the tokenizer's class by the model type as well as by the files: a Qwen2 checkpoint may be
split into words by Qwen2's own rule, and the same files with a Mixtral config by another. So both are loaded, and
if they differ, the rules that the source's tokenizer actually follows are written out.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from smolmoe.core.files import write_json
from smolmoe.core.json_text import read_object
from smolmoe.core.model_code import without_code
from smolmoe.errors import RequestError
from smolmoe.families import MOE_TARGETS, DenseFamily

logger = logging.getLogger(__name__)

_PLAIN_CLASS = "TokenizersBackend"  # reads tokenizer.json as is
# If the files name one of these, they are read as is with any config except that of a type with its own rules.
_PLAIN_CLASSES = (_PLAIN_CLASS, "PreTrainedTokenizerFast")


def keep_tokenizer(source: Path, out: Path, family: DenseFamily | None, *, native: bool) -> None:
    """Make the tokenizer in `out` act as the source's; the config is written and the tokenizer's files are copied.

    Args:
        family: of the source; None if it is not built in.
        native: `out` is of a class that transformers has. It does not know the generic model's type, while our own
            loader reads the tokenizer as the dense model's: comparing would miss a difference that others have.
    """
    drop_code(out)
    target = MOE_TARGETS.get(str(read_object(out / "config.json").get("model_type")))
    forced = target.name if target is not None and target.own_tokenizer else ""
    plain = _settings(source).get("tokenizer_class") in _PLAIN_CLASSES
    if family is not None and not family.own_tokenizer and plain and not forced:
        return
    from smolmoe.moe.loading import load_tokenizer

    theirs = load_tokenizer(source)
    rules = _rules(theirs)
    if rules is None or (native and _rules(load_tokenizer(out)) == rules):
        return
    (out / "tokenizer.json").write_text(rules, encoding="utf-8")
    write_json(out / "tokenizer_config.json", _settings(out) | {"tokenizer_class": _PLAIN_CLASS})
    if forced and _rules(load_tokenizer(out)) != rules:
        logger.warning(
            "AutoTokenizer splits the text of every %s by that type's own rule, which is not this tokenizer's: load it "
            "with PreTrainedTokenizerFast.",
            forced,
        )


def same_tokenizer(folder: Path, base: Path, *, field: str, owner: str = "base") -> list[str]:
    """Warnings about a specialist whose tokenizer matches the base's, or cannot be compared.

    Raises:
        RequestError: the same text gives different tokens.
    """
    from smolmoe.data.same_tokenizer import tokenizer_difference
    from smolmoe.moe.loading import load_tokenizer

    if _bytes(folder) == _bytes(base):
        return []
    theirs, ours = load_tokenizer(folder), load_tokenizer(base)
    if theirs is None or ours is None:
        lacks = f"{field} has" if theirs is None else f"the {owner} has"
        return [f"{lacks} no tokenizer, so it was not checked that {field} and the {owner} tokenize text alike."]
    said = tokenizer_difference(theirs, ours, names=("specialist", owner), ends=False)
    if said is not None:
        raise RequestError(
            f"its tokenizer differs from the {owner}'s ({said}), so the same text would give different tokens.",
            field=field,
            value=str(folder),
            fix=f"Fine-tune it with the {owner}'s tokenizer.",
        )
    unlike = []
    if theirs.eos_token != ours.eos_token:
        unlike.append(f"its end-of-text token is {theirs.eos_token!r}, the {owner}'s {ours.eos_token!r}")
    if theirs.chat_template is not None and theirs.chat_template != ours.chat_template:
        unlike.append(f"it has a chat template that the {owner} does not have")
    return [f"{field}: {' and '.join(unlike)}; the result has the {owner}'s."] if unlike else []


def _bytes(folder: Path) -> dict[str, bytes]:
    """All files that a tokenizer is read from; its class may also depend on config.json."""
    patterns = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja")
    return {path.name: path.read_bytes() for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def drop_code(out: Path) -> None:
    """Remove references to custom code from a copied tokenizer's settings."""
    settings = _settings(out)
    if settings != without_code(settings):
        write_json(out / "tokenizer_config.json", without_code(settings))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _rules(tokenizer: Any) -> str | None:
    """Everything that determines tokenization; None for a tokenizer outside the tokenizers library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())
