"""Models side by side on the same held-out text: quality, cost, and which model wins at what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smolmoe.core.devices import pick_device
from smolmoe.core.files import growing, json_text, place, write_together
from smolmoe.core.progress import Progress, silent
from smolmoe.core.provenance import command, versions
from smolmoe.core.run_folder import foreign, occupied
from smolmoe.errors import RequestError
from smolmoe.evaluation.compare.leaks import LeakSearch
from smolmoe.evaluation.compare.lineage import read_lineage
from smolmoe.evaluation.compare.lm_eval import load_tasks, mean_scores, score_tasks
from smolmoe.evaluation.compare.losses import Reading, read_held_out
from smolmoe.evaluation.compare.models import Contender, Paths, open_contenders
from smolmoe.evaluation.compare.speed import measure_speeds
from smolmoe.evaluation.compare.statistics import difference, estimate, exponential
from smolmoe.evaluation.compare.table import markdown
from smolmoe.evaluation.compare.text import Limits, find_documents, judge_by, run_limits, windows_for
from smolmoe.evaluation.compare.verdict import verdict, warnings, winners
from smolmoe.evaluation.flops import count_flops
from smolmoe.evaluation.text_metrics import Floats
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.loading import Skeleton, load_model, load_tokenizer
from smolmoe.moe.routing import find_routers
from smolmoe.moe.size import ModelSize, size_of
from smolmoe.results.comparison import (
    FILE,
    TABLE,
    Agreement,
    CheckpointResult,
    Comparison,
    Estimate,
    ModelResult,
    Pair,
    Score,
    Speed,
)

FLOP_LENGTH = 128
BITS = 1 / math.log(2)  # of a nat


def compare(
    models: Mapping[str, Paths],
    data: str | Path,
    *,
    by: str | None = None,
    tokens: int | None = None,
    document_tokens: int | None = None,
    length: int | None = None,
    speed: bool = True,
    tasks: str | Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    report: Progress | None = None,
) -> Comparison:
    """Compare models on the same held-out text.

    Args:
        models: name -> folder of a model or of a run; several folders are seeds. The first model is the base.
        data: text as `open_source` takes it, or the folder of a training run, whose held-out text is used.
        by: column of a row's domain (of a run: "domain"); None for one domain.
        tokens, document_tokens, length: maximum per domain, document and window. None takes the run's limits; for
            other text 20,000, 1,024 and 256.
        speed: measure latency, tokens per second and memory.
        tasks: a task file of lm-evaluation-harness, or a folder of them.
        out: folder for `compare.json` and `table.md`.
        overwrite: replace existing ones.
        device: CPU computes in float32, other devices in the stored dtype.

    Raises:
        RequestError: models, seeds or values that do not fit together; lm-evaluation-harness is not installed.
        SourceError, CheckpointError, HubError: a model cannot be loaded, or has no tokenizer.
        DataError: the text cannot be read, has no domains, or is too short; a task file is wrong.
        OutputError: `out` holds something else, or an earlier comparison.
    """
    device = pick_device(device)
    if out is not None:
        place(out, "growing folder")
        _check_out(out, overwrite)
    loaded = {} if tasks is None else load_tasks(tasks)
    contenders = open_contenders(models)
    job = _Job(contenders, str(data), by, device, report or silent)
    job.read_text(run_limits(str(data)).asked(tokens, document_tokens, length), length is not None)
    found = job.compare(speed=speed, tasks=loaded)
    if out is not None:
        with growing(out, lambda: _check_out(out, overwrite)):
            write_together({out / TABLE: markdown(found), out / FILE: json_text(found.to_json())})
    return found


@dataclass(frozen=True)
class _Facts:
    """Facts of a loaded model."""

    class_name: str
    size: ModelSize
    experts: int | None
    top_k: int | None
    flops: float

    @classmethod
    def of(cls, model: Any, length: int) -> _Facts:
        routers = find_routers(model)
        spec = gate_spec(routers[0][1]) if routers else None
        flops = count_flops(model, length=length, train=False).prefill.total
        experts, top_k = (None, None) if spec is None else (spec.experts, spec.top_k)
        return cls(type(model).__name__, size_of(model), experts, top_k, flops)


class _Job:
    """One comparison: the models, the text, and the measurements."""

    def __init__(self, contenders: list[Contender], data: str, by: str | None, device: str, report: Progress):
        self.contenders = contenders
        self.base = contenders[0]
        self.data = data
        self.by = by
        self.device = device
        self.report = report
        self.seeds = max(len(contender.paths) for contender in contenders)
        same = {contender.tokenizer_hash for contender in contenders} == {self.base.tokenizer_hash}
        self.unit = "token" if same else "byte"
        self.readings: dict[str, list[Reading]] = {contender.name: [] for contender in contenders}
        self.facts: dict[str, _Facts] = {}

    # -- measuring -----------------------------------------------------------------------------------------------

    def read_text(self, limits: Limits, length_is_asked: bool) -> None:
        """Choose the text, and cut it into each model's windows."""
        contexts = {contender.name: contender.positions for contender in self.contenders if contender.positions}
        shortest = min(contexts, key=contexts.__getitem__, default=None)
        length = limits.length
        if shortest is not None and length > contexts[shortest]:
            if length_is_asked:
                fix = f"Use at most {contexts[shortest]}."
                raise RequestError(f"longer than {shortest}'s context.", field="length", value=length, fix=fix)
            length = contexts[shortest]
        self.report("Reading the text", 0, 0)
        self.text = judge_by(find_documents(self.data, self.by), self.base.tokenizer, limits, self.data)
        self.length = length
        self.windows = {
            contender.name: windows_for(
                self.text, contender.tokenizer, length, is_base=contender.tokenizer_hash == self.base.tokenizer_hash
            )
            for contender in self.contenders
        }

    def compare(self, *, speed: bool, tasks: Mapping[str, Any]) -> Comparison:
        self._read_all()
        speeds = measure_speeds(self.contenders, self.device, self.report) if speed else {}
        scores = self._scores(tasks) if tasks else {}
        search = LeakSearch(self.text, lambda label: self.report(f"Looking for the text in what {label} read", 0, 0))
        models = tuple(
            self._model(contender, search, speeds.get(contender.name), scores.get(contender.name, {}))
            for contender in self.contenders
        )
        facts = self.text.facts(self.data, self.by, self.length)
        pairs = tuple(self._pair(second, first) for first, second in combinations(self.contenders, 2))
        best = winners(models, pairs)
        return Comparison(
            verdict=verdict(models, pairs, self.unit),
            warnings=warnings(models, facts, self.unit),
            unit=self.unit,
            text=facts,
            models=models,
            pairs=pairs,
            winners=best,
            seeds=self.seeds,
            device=self.device,
            versions=versions(),
            command=command(),
        )

    def _read_all(self) -> None:
        """Read the text with every checkpoint, seed by seed; the base stays in memory while the others are read."""
        base = None
        for seed in range(self.seeds):
            if base is None or self.base.at(seed) == seed:
                base = self._load(self.base, seed)
                self._read(self.base, seed, base, None)
            for contender in self.contenders[1:]:
                if contender.at(seed) == seed:
                    same = contender.tokenizer_hash == self.base.tokenizer_hash
                    self._read(contender, seed, self._load(contender, seed), base if same else None)

    def _read(self, contender: Contender, seed: int, model: Any, base: Any | None) -> None:
        windows = self.windows[contender.name]
        path = contender.paths[seed]
        total = len(windows.windows)
        reading = read_held_out(
            model, windows, base=base, on_window=lambda done: self.report(f"Reading with {path}", done, total)
        )
        self.readings[contender.name].append(reading)
        if seed == 0:
            self.report(f"Counting the FLOPs of {contender.name}", 0, 0)
            self.facts[contender.name] = _Facts.of(
                model, min(FLOP_LENGTH, (contender.positions or FLOP_LENGTH + 1) - 1)
            )

    def _load(self, contender: Contender, seed: int) -> Any:
        folder = contender.checkpoints[contender.at(seed)].folder
        self.report(f"Loading {folder}", 0, 0)
        dtype = torch.float32 if self.device == "cpu" else Skeleton(folder).stored_dtype()
        return load_model(folder, dtype=dtype, device=self.device)

    def _scores(self, tasks: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Score]]]:
        """Model -> task -> metric -> score, the mean over seeds."""
        found: dict[str, dict[str, dict[str, Score]]] = {}
        for contender in self.contenders:
            each = []
            for seed, path in enumerate(contender.paths):
                self.report(f"Scoring {path} on tasks", 0, 0)
                tokenizer = load_tokenizer(contender.checkpoints[seed].folder)  # the harness modifies it
                each.append(score_tasks(self._load(contender, seed), tokenizer, tasks))
            found[contender.name] = mean_scores(each)
        return found

    # -- putting together ----------------------------------------------------------------------------------------

    def _model(
        self, contender: Contender, search: LeakSearch, speed: Speed | None, tasks: dict[str, dict[str, Score]]
    ) -> ModelResult:
        facts, nll = self.facts[contender.name], self._nll(contender)
        loss, by_domain = self._estimates(nll, self._weights(contender))
        byte, byte_by_domain = self._estimates(nll * BITS, self.text.bytes)
        return ModelResult(
            name=contender.name,
            kind="dense" if facts.experts is None else "moe",
            class_name=facts.class_name,
            experts=facts.experts,
            top_k=facts.top_k,
            tokenizer=contender.tokenizer_hash,
            parameters=facts.size.total,
            active=facts.size.active,
            disk=contender.disk,
            flops=facts.flops,
            loss=loss,
            by_domain=by_domain,
            perplexity=exponential(loss),
            perplexity_by_domain={domain: exponential(found) for domain, found in by_domain.items()},
            bits_per_byte=byte,
            bits_per_byte_by_domain=byte_by_domain,
            agreement=self._agreement(contender),
            speed=speed,
            tasks=tasks,
            checkpoints=tuple(self._checkpoints(contender, search)),
        )

    def _pair(self, first: Contender, second: Contender) -> Pair:
        nll, other, weights = self._nll(first), self._nll(second), np.array(self._weights(first))
        by_domain = {
            domain: difference(nll[:, chosen], other[:, chosen], weights[chosen].tolist())
            for domain, chosen in self._domains().items()
        }
        return Pair(first.name, second.name, difference(nll, other, weights.tolist()), by_domain)

    def _agreement(self, contender: Contender) -> Agreement | None:
        readings = self.readings[contender.name]
        same, kl = ([getattr(reading, name) for reading in readings] for name in ("same", "kl"))
        if same[0] is None:
            return None
        tokens = readings[0].tokens
        return Agreement(estimate(np.array(same), tokens), estimate(np.array(kl), tokens))

    def _checkpoints(self, contender: Contender, search: LeakSearch) -> Iterator[CheckpointResult]:
        base = None if contender is self.base else self.base.sha256[0]
        weights = self._weights(contender)
        for at, (path, checkpoint) in enumerate(zip(contender.paths, contender.checkpoints, strict=True)):
            lineage = read_lineage(checkpoint.folder, contender.sha256[at], base, _token_cost)
            loss, by_domain = self._estimates(self._nll(contender)[at : at + 1], weights)
            yield CheckpointResult(
                path=path,
                sha256=contender.sha256[at],
                seed=lineage.seed,
                loss=loss.value,
                by_domain={domain: found.value for domain, found in by_domain.items()},
                training=lineage.training(self.base.name),
                leak=search.leak(lineage.texts),
            )

    def _estimates(self, sums: Floats, weights: Sequence[int]) -> tuple[Estimate, dict[str, Estimate]]:
        """Over all documents, and over those of each domain."""
        held = np.array(weights)
        return estimate(sums, weights), {
            domain: estimate(sums[:, chosen], held[chosen].tolist()) for domain, chosen in self._domains().items()
        }

    def _domains(self) -> dict[str, NDArray[np.bool_]]:
        """Which documents are of each domain; empty if the text has no domains."""
        names = np.array(self.text.domains)
        return {} if self.by is None else {domain: names == domain for domain in sorted(set(self.text.domains))}

    def _nll(self, contender: Contender) -> Floats:
        """[S, D]."""
        return np.array([reading.nll for reading in self.readings[contender.name]])

    def _weights(self, contender: Contender) -> Sequence[int]:
        """The denominators of the losses [D]."""
        return self.text.bytes if self.unit == "byte" else self.readings[contender.name][0].tokens


def _token_cost(folder: Path, length: int) -> float:
    return size_of(Skeleton(folder).model).flops_per_token(length)


def _check_out(out: Path, overwrite: bool) -> None:
    """Check before the measurement: only an earlier comparison is replaced, and only with `overwrite`."""
    there = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or there - {FILE, TABLE}:
        raise foreign(out, "a comparison")
    if there and not overwrite:
        raise occupied(out, "a comparison", "Use `overwrite=True`, or name another folder.")
