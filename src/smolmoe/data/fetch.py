"""Presets of the hub as files: streamed into shards of rows, resumable, with their provenance."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smolmoe.core.files import growing, write_json
from smolmoe.core.json_text import read_json
from smolmoe.core.progress import Progress
from smolmoe.core.run_folder import is_ours
from smolmoe.data.presets import EMBEDDED, PRESETS, Preset, documents_of, find_preset
from smolmoe.data.sources import open_data_set, with_columns, with_hub_errors
from smolmoe.data.tally import Tally
from smolmoe.errors import DataError, OutputError, RequestError
from smolmoe.recipe.base import parse
from smolmoe.recipe.data import SourceRecipe
from smolmoe.recipe.words import Continue
from smolmoe.results.fetched import Fetched, KnownDataSet

STATE = "state.json"  # completed shards, and the position in the stream
PROVENANCE = "provenance.json"
SHARD_ROWS = 10_000


def catalogue() -> tuple[KnownDataSet, ...]:
    """The presets that can be fetched."""
    return tuple(
        KnownDataSet(
            label,
            preset.path,
            preset.name,
            preset.split,
            preset.licence,
            preset.free,
            preset.size,
            (*preset.columns, *preset.optional),
        )
        for label, preset in sorted(PRESETS.items())
    )


def fetch(
    preset: Annotated[str | None, Field(description="name of the preset (default: list all)")] = None,
    out: Annotated[str | Path | None, Field(description="output folder for the rows and provenance.json")] = None,
    *,
    rows: Annotated[int | None, Field(ge=1, description="maximum number of rows (default: all)")] = None,
    split: Annotated[str | None, Field(description="split of the data set (default: the preset's)")] = None,
    revision: Annotated[str | None, Field(description="commit, branch or tag (default: the newest)")] = None,
    accept_licence: Annotated[
        str | None, Field(description="name of the licence you accept, for a data set that is not free for every use")
    ] = None,
    resume: Continue = False,
    list: Annotated[bool, Field(description="list of the presets")] = False,  # noqa: A002 - the option's name
    report: Progress | None = None,
    shard_rows: int = SHARD_ROWS,
) -> Fetched | tuple[KnownDataSet, ...]:
    """Download a known data set as training rows, or list all.

    Rows have a text, a domain, and the columns that they are made of, in JSONL shards. A shard appears when it is
    complete; a kill loses the current one. A resumed download continues after the last complete one: at its place in
    the data set or, if several rows make one document, by reading up to there again. It may ask for more rows.

    Args:
        shard_rows: rows per file.

    Returns:
        What provenance.json holds; the known data sets if no preset is named.

    Raises:
        DataError: no such preset, split or column.
        RequestError: the licence asks for consent, or there is no output folder.
        HubError: the data set cannot be had.
        OutputError: the folder holds something else, or what is there was begun otherwise.
    """
    if list or preset is None:
        return catalogue()
    if out is None:
        raise RequestError("the output folder is missing.", field="out", fix="Add `out=DIR`.")
    if preset == EMBEDDED:
        raise DataError(
            "it is made from this Python installation: there is nothing to fetch.",
            field="preset",
            value=preset,
            fix="Use it directly: data.sources: [{preset: embedded}].",
        )
    known = find_preset(preset)
    _check_licence(preset, known, accept_licence)
    request = {"preset": preset, "path": known.path, "name": known.name, "split": split or known.split}
    with growing(Path(out)):
        writing = _Writing(Path(out), request, resume=resume, revision=revision)
        writing.run(preset, known, rows, shard_rows, report)
        return writing.finish(known)


def _check_licence(label: str, preset: Preset, accepted: str | None) -> None:
    if preset.free or accepted == preset.licence:
        return
    kind = "each row has its own licence" if preset.licence == "mixed" else "it does not allow every use"
    raise RequestError(
        f"{preset.path} is not free for every use: its licence is {preset.licence} ({kind}).",
        field="preset",
        value=label,
        fix=f"If your use is allowed, pass `accept_licence={preset.licence!r}`",
    )


class _Writing:
    """A folder of shards, and the position in the stream."""

    def __init__(self, out: Path, request: dict[str, Any], *, resume: bool, revision: str | None):
        self.out, self.request = out, request
        self.tally = Tally()
        self.state: dict[str, Any] = {"shards": [], "position": None, "exhausted": False, "columns": [], "domains": {}}
        found = self._found(resume)
        if found is not None:
            self.state = found
            self.asked = found["asked_revision"]
            self.revision = found["revision"]
            if revision not in (None, self.asked, self.revision):
                raise self._other("revision", self.revision, revision)
            for name, value in request.items():
                if found["request"][name] != value:
                    raise self._other(name, found["request"][name], value)
        else:
            self.asked = revision
            self.revision = _commit(request["path"], revision)

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.state["shards"])

    def _found(self, resume: bool) -> dict[str, Any] | None:
        if not is_ours(self.out, "fetched rows", STATE):
            return None
        try:
            found: dict[str, Any] = read_json(self.out / STATE)
            for shard in found["shards"]:
                if (self.out / shard["file"]).stat().st_size != shard["bytes"]:
                    raise ValueError(f"{shard['file']} is not as it was written")
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(
                f"the rows there are damaged ({error}).",
                field="out",
                value=str(self.out),
                fix="Fetch into another folder.",
            ) from error
        if found["shards"] and not resume:
            raise OutputError(
                f"the folder contains {sum(shard['rows'] for shard in found['shards'])} fetched rows.",
                field="out",
                value=str(self.out),
                fix="Use `resume=True` to resume, or choose another folder.",
            )
        return found if found["shards"] else None  # killed during the first shard: starts over

    def _other(self, name: str, there: object, here: object) -> OutputError:
        return OutputError(
            f"the rows there were fetched with a different {name} ({there} there, {here} here).",
            field="out",
            value=str(self.out),
            fix="Resume with the same one, or choose another folder.",
        )

    def run(self, label: str, preset: Preset, rows: int | None, shard_rows: int, report: Progress | None) -> None:
        """Write shards until there are `rows` rows, or the data set ends."""
        if self.state["exhausted"] or (rows is not None and self.rows >= rows):
            return
        recipe = parse(SourceRecipe, {"preset": label, "revision": self.revision, "streaming": True})
        stream, hashed = open_data_set(preset.path, preset.name, self.request["split"], recipe)
        if self.state.get("hashed", hashed) != hashed:
            raise self._other("content of the data set", self.state["hashed"], hashed)
        self.state |= {"hashed": hashed, "request": self.request}
        self.state |= {"revision": self.revision, "asked_revision": self.asked}
        stream = with_columns(stream, preset.path, preset.columns, preset.optional)
        found = self._rows_of(label, preset, stream)
        total = min(preset.size, rows or preset.size)
        write_json(self.out / STATE, self.state)
        while not self.state["exhausted"] and (rows is None or self.rows < rows):
            if report is not None:
                report("Fetching", self.rows, max(total, self.rows))
            wanted = shard_rows if rows is None else min(shard_rows, rows - self.rows)
            self._shard(found, wanted)
            if preset.joins_rows:  # a resumed fetch reads all rows again
                self.state["left_out"] = dict(self.tally.counts)
            else:
                self.state["left_out"] = dict(Counter(self.state.get("left_out", {})) + self.tally.counts)
                self.tally.counts.clear()
            self.state["position"] = None if preset.joins_rows else stream.state_dict()
            write_json(self.out / STATE, self.state)

    def _rows_of(self, label: str, preset: Preset, stream: Any) -> Iterator[dict[str, Any]]:
        if preset.joins_rows:
            documents = documents_of(label, with_hub_errors(preset.path, iter(stream)), self.tally)
            for document in islice(documents, self.rows, None):
                yield {"text": document.text, "domain": document.domain}
            return
        if self.state["position"] is not None:
            stream.load_state_dict(self.state["position"])
        for row in with_hub_errors(preset.path, iter(stream)):
            for document in documents_of(label, [row], self.tally):
                yield {**row, "text": document.text, "domain": document.domain}

    def _shard(self, found: Iterator[dict[str, Any]], wanted: int) -> None:
        """Write the next file atomically, or none at the end of the data set."""
        name = f"rows-{len(self.state['shards']):05d}.jsonl"
        partial = self.out / f".{name}.partial"
        digest, count, columns = hashlib.sha256(), 0, dict.fromkeys(self.state["columns"])
        domains: Counter[str] = Counter(self.state["domains"])
        with partial.open("wb") as file:
            for row in islice(found, wanted):
                line = json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
                file.write(line)
                digest.update(line)
                count += 1
                columns |= dict.fromkeys(row)
                domains[row["domain"]] += 1
            file.flush()
            os.fsync(file.fileno())
            nbytes = file.tell()
        self.state["exhausted"] = count < wanted
        if not count:
            partial.unlink()
            return
        partial.replace(self.out / name)
        self.state["shards"].append({"file": name, "rows": count, "bytes": nbytes, "sha256": digest.hexdigest()})
        self.state |= {"columns": list(columns), "domains": dict(domains)}

    def finish(self, preset: Preset) -> Fetched:
        """Write and return where the rows came from."""
        if not self.rows:
            raise DataError("the data set contains no text.", field="preset", value=self.request["preset"])
        digests = "".join(shard["sha256"] for shard in self.state["shards"])
        found = Fetched(
            **self.request,
            **{name: self.state[name] for name in ("domains", "columns", "shards")},
            asked_revision=self.asked,
            revision=self.revision,
            data_set_hash=self.state["hashed"],
            licence=preset.licence,
            rows=self.rows,
            whole=self.state["exhausted"],
            left_out=self.state.get("left_out", {}),
            sha256=hashlib.sha256(digests.encode()).hexdigest(),
        )
        found.write(self.out / PROVENANCE)
        return found


def _commit(path: str, revision: str | None) -> str | None:
    """The current commit of a data set on the hub, so that a resumed fetch reads the same one."""
    if Path(path).exists():
        return revision
    hub = import_module("huggingface_hub")
    try:
        found = hub.HfApi().dataset_info(path, revision=revision).sha
    except Exception:  # the client raises many kinds; opening the data set reports the problem
        return revision
    return str(found) if found else revision
