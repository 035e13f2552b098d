"""The MoE must read text as the dense model does. Copying the tokenizer's files is not enough for that.

transformers picks the tokenizer's class by the model type as well as by what the files say: a Qwen2 checkpoint may be
split into words by Qwen2's own rule, and the same files beside a Mixtral's config by another. So both are loaded, and
where they differ the rules that the source's tokenizer really follows are written out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smolmoe.moe.loading import load_tokenizer

_PLAIN_CLASS = "TokenizersBackend"  # reads tokenizer.json as it stands


def keep_tokenizer(source: Path, out: Path) -> None:
    """Make the tokenizer in `out` act as the source's; the config is written and the tokenizer's files are copied."""
    theirs = load_tokenizer(source)
    rules = _rules(theirs)
    if rules is None or _rules(load_tokenizer(out)) == rules:
        return
    (out / "tokenizer.json").write_text(rules, encoding="utf-8")
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(settings | {"tokenizer_class": _PLAIN_CLASS}, indent=2) + "\n", encoding="utf-8")


def _rules(tokenizer: Any) -> str | None:
    """Everything that decides how text becomes tokens; None for a tokenizer that is not of the tokenizers library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())
