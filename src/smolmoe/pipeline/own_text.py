"""The text that a user names: paths, `NAME=PATH`, presets and `hub:` paths, as sources of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolmoe.core.files import expanded
from smolmoe.core.progress import Progress
from smolmoe.data.messages import has_template
from smolmoe.data.presets import EMBEDDED, PRESETS
from smolmoe.data.sources import holds_conversations
from smolmoe.data.survey import Survey, survey
from smolmoe.errors import RequestError
from smolmoe.recipe import DataRecipe, SourceRecipe, parse

Named = Sequence[str | Path] | str | Path


def sources_of(data: Named, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of sources.

    Args:
        data: paths, each as PATH or NAME=PATH; the name is the domain of all its documents.
        options: of every source that has a path.

    Raises:
        RequestError: nothing is named, or a value is not a source.
    """
    pairs = [_named(str(one)) for one in ([data] if isinstance(data, str | Path) else data)]
    if not pairs:
        raise RequestError("there is no text.", field="data", value="", fix="Name a file or a folder.")
    found = []
    for name, path in pairs:
        values = {"preset": path} if path in {*PRESETS, EMBEDDED} else {"path": path, **options}
        found.append(values | ({"domain": name} if name else {}))
        parse(SourceRecipe, found[-1])
    return found


def _named(given: str) -> tuple[str, str]:
    """The domain and the path of NAME=PATH; a file's name may have a = in it."""
    name, separator, path = given.partition("=")
    is_named = separator and name and path and not any(mark in name for mark in "/\\:") and not expanded(given).exists()
    return (name, path) if is_named else ("", given)


def look(
    sources: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    tokenizer: Any,
    model: str,
    report: Progress | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Survey]:
    """The sources with what they need, and what they hold.

    Conversations get the model's chat template. Several paths whose documents have no domains are one domain each, by
    their names.
    """
    if has_template(tokenizer):
        sources, validation = (
            [one | ({"chat_template": model} if holds_conversations(parse(SourceRecipe, one)) else {}) for one in side]
            for side in (sources, validation)
        )
    found = survey(_data(sources, validation), tokenizer, report=report)
    if len(found.names) >= 2 or len(sources) < 2 or any("domain" in one for one in sources):
        return sources, validation, found
    sources = [one | {"domain": _stem(one)} for one in sources]
    if len({one["domain"] for one in sources}) < len(sources):
        raise RequestError(
            "several paths have the same name, which would be the name of their domain.",
            field="data",
            value=", ".join(one["domain"] for one in sources),
            fix="Name them: NAME=PATH.",
        )
    return sources, validation, survey(_data(sources, validation), tokenizer, report=report)


def _stem(source: Mapping[str, Any]) -> str:
    path = str(source.get("path") or source.get("preset")).rstrip("/")
    return Path(path).name.partition(".")[0] or path


def _data(sources: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> DataRecipe:
    return parse(DataRecipe, {"sources": [*sources], "validation": [*validation]})
