"""Routing accuracy and its ceilings, fitted on some documents and evaluated on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from smolmoe.core.progress import Progress
from smolmoe.core.statistics import Interval
from smolmoe.errors import DataError
from smolmoe.moe.names import expert_names, named_layers
from smolmoe.probing.accuracy import (
    Owners,
    domain_counts,
    last_third,
    learn_owners,
    named_owners,
    over_layers,
    routing_accuracy,
    split_documents,
)
from smolmoe.probing.counting import KeptDocuments, RoutingCounts
from smolmoe.probing.inputs import CONTEXT, InputTap, Sample, fit_probes, judge_probes, sample_inputs
from smolmoe.probing.linear import macro
from smolmoe.probing.setup import Subject
from smolmoe.results.probe import Accuracy, Span

DRAWS = 1000  # bootstrap samples of documents, for the interval of the accuracy


@dataclass(frozen=True)
class Sides:
    """Documents to fit on and documents to evaluate on, without overlap, with the index of their domain."""

    fit: KeptDocuments
    judged: KeptDocuments
    domains: list[str]


def take_sides(
    subject: Subject, counts: RoutingCounts, domains: list[str], fit_data: str | None, report: Progress | None
) -> Sides:
    """Halves of the counted documents; with `fit_data` all of them are evaluated on.

    Raises:
        DataError: a domain has too few documents on one side.
    """
    if fit_data is None:
        return Sides(*split_documents(counts.kept, domains), domains)
    judged = {document.key for document in counts.kept.documents}
    # The tokens of the linear probes are enough to assign the experts.
    found = subject.count(fit_data, report, tokens=CONTEXT * subject.options.probe_tokens).kept
    fit = found.part([at for at, d in enumerate(found.documents) if d.domain in domains and d.key not in judged])
    for domain in domains:
        if not any(document.domain == domain for document in fit.documents):
            raise DataError(
                f"no row of domain {domain} that is not in the data itself.", field="fit_data", value=fit_data
            )
    return Sides(fit, counts.kept, domains)


def find_owners(subject: Subject, sides: Sides) -> tuple[Owners, list[str]]:
    """The domain of each expert [L][E], and for each layer its origin: "names" or "learned"."""
    config = subject.model.config
    named, guided = named_owners(expert_names(config), sides.domains), named_layers(config)
    fit = sides.fit
    learned = learn_owners(torch.stack(fit.first), fit.labels(sides.domains), len(sides.domains))
    by_name = [named is not None and (guided is None or layer in guided) for layer in subject.layers]
    owners = [named if use and named is not None else own for use, own in zip(by_name, learned, strict=True)]
    return owners, ["names" if use else "learned" for use in by_name]


def favourites(sides: Sides) -> list[list[int]]:
    """[L][D]: the most frequent first choice of a domain."""
    counts = domain_counts(torch.stack(sides.fit.first), sides.fit.labels(sides.domains), len(sides.domains))
    return counts.argmax(-1).tolist()


def draw_sample(subject: Subject, tap: InputTap, sides: Sides) -> Sample:
    """Inputs of tokens to fit on, the same number of each domain."""
    options = subject.options
    return sample_inputs(tap, sides.fit.documents, sides.domains, subject.windows, options.probe_tokens, options.seed)


def judge_ceiling(subject: Subject, tap: InputTap, sample: Sample, sides: Sides) -> list[list[float]]:
    """[L][D]: accuracy of a linear probe fitted on the sample."""
    probes = fit_probes(sample, len(sides.domains))
    return judge_probes(tap, probes, sides.judged.documents, sides.domains, subject.windows)


def judge_routing(
    subject: Subject,
    sides: Sides,
    owners: Owners,
    origins: list[str],
    ceiling: list[list[float]],
    dense_ceiling: list[list[float]] | None,
) -> tuple[Accuracy, Span]:
    """The accuracy of all layers, and over the last third of the layers."""
    first, labels, domains = torch.stack(sides.judged.first), sides.judged.labels(sides.domains), sides.domains
    told = routing_accuracy(first, labels, owners, len(domains))
    ceilings = {"router": ceiling, "dense": dense_ceiling}

    def span(positions: Sequence[int]) -> Span:
        found = over_layers(positions, subject.layers, first, labels, owners, ceilings)
        return replace(found, interval=_interval(found.accuracy, first[:, list(positions)], labels, owners, positions))

    documents = sides.judged.documents
    accuracy = Accuracy(
        owner=owners,
        owners_from=origins,
        documents={domain: labels.count(index) for index, domain in enumerate(domains)},
        tokens={domain: sum(len(d.ids) for d in documents if d.domain == domain) for domain in domains},
        per_token=told.per_token,
        macro=_macros(told.per_token),
        document_majority=told.document_majority,
        linear_probe=ceiling,
        linear_probe_macro=_macros(ceiling),
        dense_linear_probe=dense_ceiling,
        dense_linear_probe_macro=None if dense_ceiling is None else _macros(dense_ceiling),
        all_layers=span(range(len(subject.layers))),
    )
    return accuracy, span(last_third(subject.layers))


def _interval(
    accuracy: float, first: torch.Tensor, labels: Sequence[int], owners: Owners, positions: Sequence[int]
) -> Interval:
    """The interval of the mean over domains and layers, by resampling the documents of each domain.

    Args:
        first: first choices of N documents in these layers, [N, L, E].
    """
    label = torch.tensor(labels)
    own = torch.tensor([[-1 if owner is None else owner for owner in owners[at]] for at in positions])  # [L, E]
    right = (first.double() * (own[None] == label[:, None, None])).sum(-1)  # [N, L]
    total = first.double().sum(-1)
    generator = torch.Generator().manual_seed(0)
    means = []
    for domain in sorted(set(labels)):
        members = torch.nonzero(label == domain).flatten()
        drawn = members[torch.randint(len(members), (DRAWS, len(members)), generator=generator)]
        means.append((right[drawn].sum(1) / total[drawn].sum(1).clamp_min(1)).mean(-1))
    low, high = torch.stack(means).mean(0).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(accuracy, min(low, accuracy), max(high, accuracy))


def _macros(values: list[list[float]]) -> list[float]:
    return [macro(row) for row in values]
