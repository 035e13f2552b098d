"""The MoE must read text as the dense model does. Copying the tokenizer's files is not enough for that.

transformers picks the tokenizer's class by the model type as well as by what the files say: a Qwen2 checkpoint may be
split into words by Qwen2's own rule, and the same files beside a Mixtral's config by another. So both are loaded, and
where they differ the rules that the source's tokenizer really follows are written out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolmoe.core.files import write_json
from smolmoe.core.json_text import read_object
from smolmoe.core.model_code import without_code
from smolmoe.errors import RequestError
from smolmoe.families import DenseFamily

_PLAIN_CLASS = "TokenizersBackend"  # reads tokenizer.json as it stands
# Where the files name one of these, they are read as they stand beside any config but that of a type with own rules.
_PLAIN_CLASSES = (_PLAIN_CLASS, "PreTrainedTokenizerFast")


def keep_tokenizer(source: Path, out: Path, family: DenseFamily | None, *, native: bool) -> None:
    """Make the tokenizer in `out` act as the source's; the config is written and the tokenizer's files are copied.

    Args:
        family: of the source, None where it is not known by heart.
        native: `out` is of a class that transformers has. The generic model's type says nothing to it, while our own
            loader reads the tokenizer as the dense model's: comparing would see no difference where others have one.
    """
    drop_code(out)
    if family is not None and not family.own_tokenizer and _settings(source).get("tokenizer_class") in _PLAIN_CLASSES:
        return
    from smolmoe.moe.loading import load_tokenizer

    theirs = load_tokenizer(source)
    rules = _rules(theirs)
    if rules is None or (native and _rules(load_tokenizer(out)) == rules):
        return
    (out / "tokenizer.json").write_text(rules, encoding="utf-8")
    write_json(out / "tokenizer_config.json", _settings(out) | {"tokenizer_class": _PLAIN_CLASS})


def same_tokenizer(folder: Path, base: Path, *, field: str, owner: str = "base") -> list[str]:
    """What to know of a specialist whose tokenizer reads text as the base's does, or cannot be compared.

    Raises:
        RequestError: the same text becomes other tokens.
    """
    from smolmoe.data.same_tokenizer import tokenizer_difference
    from smolmoe.moe.loading import load_tokenizer

    if _bytes(folder) == _bytes(base):
        return []
    theirs, ours = load_tokenizer(folder), load_tokenizer(base)
    if theirs is None or ours is None:
        lacks = f"{field} has" if theirs is None else f"the {owner} has"
        return [f"{lacks} no tokenizer, so that {field} and the {owner} read text alike was not checked."]
    said = tokenizer_difference(theirs, ours, names=("specialist", owner), ends=False)
    if said is not None:
        raise RequestError(
            f"its tokenizer is not the {owner}'s ({said}), so the same text would reach the experts as other tokens.",
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
    """All that a tokenizer is read from, but that its class may depend on config.json, too."""
    patterns = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.jinja")
    return {path.name: path.read_bytes() for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def drop_code(out: Path) -> None:
    """Take out of a copied tokenizer's settings what names code to run."""
    settings = _settings(out)
    if settings != without_code(settings):
        write_json(out / "tokenizer_config.json", without_code(settings))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def _rules(tokenizer: Any) -> str | None:
    """Everything that decides how text becomes tokens; None for a tokenizer that is not of the tokenizers library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())
