"""The MoE must read text as the dense model does. Copying the tokenizer's files is not enough for that.

transformers picks the tokenizer's class by the model type as well as by what the files say: a Qwen2 checkpoint may be
split into words by Qwen2's own rule, and the same files beside a Mixtral's config by another. So both are loaded, and
where they differ the rules that the source's tokenizer really follows are written out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolmoe.families import DenseFamily
from smolmoe.files import write_json
from smolmoe.json_text import read_object
from smolmoe.model_code import without_code

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
