"""Probe an MoE: from a model's folder and tagged text to all measurements."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.devices import device_name, pick_device
from smolmoe.core.files import growing, place
from smolmoe.core.progress import Progress
from smolmoe.core.provenance import command, versions
from smolmoe.core.run_folder import is_ours, occupied
from smolmoe.errors import RequestError
from smolmoe.evaluation.held_out import cut_windows
from smolmoe.moe.names import expert_names, named_layers
from smolmoe.probing.ablation import MOST_SINGLE, Group, measure_losses, named_groups, owned_groups, single_groups
from smolmoe.probing.accuracy import Owners
from smolmoe.probing.counting import Chosen, RoutingCounts, Runner
from smolmoe.probing.describe import by_domain, coactivation, layer_results, type_table, vocabulary
from smolmoe.probing.documents import TaggedDocument, check_domains
from smolmoe.probing.excerpts import take_excerpts
from smolmoe.probing.inputs import dense_tap, router_tap
from smolmoe.probing.routing_accuracy import (
    Sides,
    draw_sample,
    favourites,
    find_owners,
    judge_ceiling,
    judge_routing,
    take_sides,
)
from smolmoe.probing.separation import cell_chance, permutation_baselines, shares, within_type_separation
from smolmoe.probing.setup import BATCH_TOKENS, Subject, open_beside, open_subject
from smolmoe.probing.similarity import expert_similarity
from smolmoe.recipe.base import parse
from smolmoe.recipe.probe import ProbeOptions
from smolmoe.results.probe import FILE, LayerResult, Losses, ProbeResult, Similarity

logger = logging.getLogger(__name__)


def probe(
    model: str | Path,
    data: str | Path,
    *,
    out: Path | None = None,
    fit_data: str | Path | None = None,
    dense: str | Path | None = None,
    against: str | Path | None = None,
    options: ProbeOptions | None = None,
    device: str = "auto",
    overwrite: bool = False,
    report: Progress | None = None,
) -> ProbeResult:
    """Measure what the experts of any MoE of transformers specialise in, on text of several domains.

    Args:
        model: folder of the MoE.
        data: tagged rows, as `open_source` reads them: .jsonl, .parquet, a folder of them, a hub data set.
        out: folder for `probe.json`.
        fit_data: tagged rows to fit owners and linear probes on, so that all of `data` is evaluated; without it, they
            are fitted on one half of its documents and evaluated on the other.
        dense: folder of the dense model, for the ceiling on its FFN inputs and as a baseline of the losses.
        against: folder of another checkpoint of the same MoE, for router saturation.
        report: called with the stage, the amount done and the total (0 if unknown).

    Raises:
        SourceError: no such model, a dense one, or one without tokenizer.
        RequestError: models that do not fit together, or values out of range.
        DataError: text that cannot be read, has no tags, or is too short for a domain.
        OutputError: `out` is occupied.
    """
    device = pick_device(device)
    if out is not None:
        place(out, "growing folder")
        _check_free(out, overwrite)
    clock = _Clock(report)
    with clock("Loading"):
        subject = open_subject(model, options or parse(ProbeOptions, {}), device)
        dense_model = None if dense is None else open_beside(dense, subject, "dense")
        dense_inputs = None if dense_model is None else dense_tap(dense_model, subject.layers)
        forced = subject.options.losses and _can_be_forced(subject)
        other = None if against is None else _comparable(open_beside(against, subject, "against"), subject)
    with clock("Routing the text"):
        counts = subject.count(str(data), report)
        domains = check_domains(counts.tokens, str(data))
        sides = take_sides(subject, counts, domains, None if fit_data is None else str(fit_data), report)
        owners, origins = find_owners(subject, sides)
    with clock("Fitting linear probes"):
        inputs = router_tap(subject.model)
        sample = draw_sample(subject, inputs, sides)
        ceiling = judge_ceiling(subject, inputs, sample, sides)
    with clock("Comparing experts"):
        similarity = expert_similarity(subject.model, sample.inputs, subject.runner.experts)
    dense_ceiling = None
    if dense_inputs is not None:
        with clock("Fitting linear probes on the dense model"):
            dense_sample = draw_sample(subject, dense_inputs, sides)
            dense_ceiling = judge_ceiling(subject, dense_inputs, dense_sample, sides)
    with clock("Shuffling domains"):
        layers = _layers(subject, counts, domains)
        options, kept = subject.options, counts.kept
        chance = cell_chance(
            torch.stack(kept.choices), kept.labels(domains), draws=options.permutations, seed=options.seed
        )
    losses, saturation = None, None
    if forced:
        with clock("Measuring losses", tell=False):  # reports its passes itself
            losses = _losses(subject, sides, owners, dense_model, similarity, report)
    if other is not None:
        with clock("Comparing choices"):
            saturation = router_saturation(subject, other, sides.judged.documents)
    accuracy, last_third = judge_routing(subject, sides, owners, origins, ceiling, dense_ceiling)
    result = ProbeResult(
        model=subject.facts(),
        data=_what_was_read(subject, counts, data=data, fit_data=fit_data, dense=dense, against=against),
        layers=layers,
        matrix_chance=chance,
        similarity=similarity,
        accuracy=accuracy,
        last_third=last_third,
        losses=losses,
        saturation=saturation,
        seconds=clock.seconds,
        **_described(subject, counts, sides),
    )
    if out is not None:
        with growing(out, lambda: _check_free(out, overwrite)):
            result.write(out / FILE)
    return result


def _described(subject: Subject, counts: RoutingCounts, sides: Sides) -> dict[str, Any]:
    """The part of a result that follows from the counts, and the excerpts."""
    domains, tokenizer = sides.domains, subject.tokenizer
    choices, first = by_domain(counts.choices, domains), by_domain(counts.first, domains)
    return {
        "domains": domains,
        "tokens": {domain: counts.tokens[domain] for domain in domains},
        "documents": {domain: counts.documents[domain] for domain in domains},
        "load": shares(choices.sum((1, 2))).tolist(),
        "matrix": shares(choices.sum(2)).tolist(),
        "coactivation": coactivation(counts.together.cpu()),
        "token_types": type_table(choices, first),
        "within_type_separation": within_type_separation(choices).tolist(),
        "vocabulary": vocabulary(counts, tokenizer),
        "text": take_excerpts(subject.runner, sides.judged.documents, domains, tokenizer, start=subject.windows.start),
    }


def router_saturation(subject: Subject, other: Runner, documents: list[TaggedDocument]) -> list[float]:
    """[L]: |E_t ∩ E_T| / K, the mean share of experts per token that another checkpoint also chooses.

    The router saturation of arXiv 2409.02060.

    Args:
        other: another checkpoint of the MoE.
        documents: of each domain, `loss_tokens` are read.
    """
    runner = subject.runner
    few = _few(documents, subject.options.loss_tokens)
    both = torch.zeros(len(runner.layers), dtype=torch.float64)
    tokens = 0
    for batch in subject.windows.of(few, subject.model.device):
        a, b = (_sets(each.chosen(batch), runner.experts) for each in (runner, other))
        both += (a & b).sum((1, 2)).cpu().double()
        tokens += a.shape[1]
    return (both / max(1, tokens * runner.top_k)).tolist()


def _sets(chosen: Chosen, experts: int) -> torch.Tensor:
    """[L, T, E] bool."""
    empty = torch.zeros(*chosen.experts.shape[:2], experts, dtype=torch.bool, device=chosen.experts.device)
    return empty.scatter_(-1, chosen.experts, True)


def _comparable(model: Any, subject: Subject) -> Runner:
    runner = Runner(model)
    same = (subject.layers, subject.runner.experts, subject.runner.top_k)
    if (runner.layers, runner.experts, runner.top_k) != same:
        raise RequestError(
            "has other MoE layers, experts or top-k, so choices cannot be compared.",
            field="against",
            value=type(model).__name__,
        )
    return runner


def _layers(subject: Subject, counts: RoutingCounts, domains: list[str]) -> list[LayerResult]:
    kept, options = counts.kept, subject.options
    baselines = permutation_baselines(
        torch.stack(kept.choices),
        torch.stack(kept.first),
        kept.labels(domains),
        draws=options.permutations,
        seed=options.seed,
    )
    return layer_results(counts, subject.layers, domains, baselines)


def _can_be_forced(subject: Subject) -> bool:
    reason = subject.runner.why_not_restricted()
    if reason is not None:
        logger.warning("No losses with experts forced or removed: %s. All else is measured.", reason)
    return reason is None


def _losses(
    subject: Subject,
    sides: Sides,
    owners: Owners,
    dense: Any | None,
    similarity: Similarity | None,
    report: Progress | None,
) -> Losses:
    options, documents = subject.options, sides.judged.documents
    held_out = cut_windows(
        [document.ids for document in documents],
        [document.domain for document in documents],
        length=options.length,
        start=subject.windows.start,
        budget=options.loss_tokens,
        per_document=options.document_tokens,
    )
    return measure_losses(
        subject.model,
        held_out,
        sides.domains,
        _groups(subject, sides, owners),
        subject.runner.experts,
        dense=dense,
        similarity=similarity,
        layers=subject.layers,
        batch=max(1, BATCH_TOKENS // options.length),
        tell=None if report is None else lambda done, total: report("Measuring losses", done, total),
    )


def _groups(subject: Subject, sides: Sides, owners: Owners) -> list[Group]:
    names = expert_names(subject.model.config)
    if names is not None and set(names) & set(sides.domains):
        idle = sorted({name for name in names if name is not None} - set(sides.domains))
        if idle:
            logger.warning("no row has the domain that these experts are named after: %s", ", ".join(idle))
        return named_groups(names, subject.layers, sides.domains, named_layers(subject.model.config))
    experts = subject.runner.experts
    single = single_groups(range(experts) if experts <= MOST_SINGLE else (), subject.layers)
    return single + owned_groups(owners, favourites(sides), subject.layers, sides.domains)


def _what_was_read(subject: Subject, counts: RoutingCounts, **places: str | Path | None) -> dict[str, Any]:
    options = subject.options
    return {
        **{name: None if place is None else str(place) for name, place in places.items()},
        **options.model_dump(include={"by", "length", "document_tokens", "probe_tokens", "permutations", "seed"}),
        "tokens_per_domain": options.tokens,
        "loss_tokens": options.loss_tokens if options.losses else None,
        "documents_one_by_one": len(counts.kept.documents),
        "device": str(subject.model.device),
        "device_name": device_name(str(subject.model.device)),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "versions": versions(),
        "command": command(),
    }


def _few(documents: list[TaggedDocument], tokens: int) -> list[TaggedDocument]:
    """Documents in order, up to that many tokens of their domain."""
    spent: dict[str, int] = {}
    few = []
    for document in documents:
        if spent.get(document.domain, 0) < tokens:
            spent[document.domain] = spent.get(document.domain, 0) + len(document.ids)
            few.append(document)
    return few


class _Clock:
    """Reports each stage at its start, and records its seconds."""

    def __init__(self, report: Progress | None) -> None:
        self._report = report
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str, *, tell: bool = True) -> Iterator[None]:
        if self._report is not None and tell:
            self._report(stage, 0, 0)
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 3)


def _check_free(out: Path, overwrite: bool) -> None:
    if is_ours(out, "a probe", FILE) and not overwrite:
        raise occupied(out, "a probe already", "Name another, or use `overwrite=True`.")
