"""Domain accuracy of a token's first choice, on documents that nothing was fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from smolmoe.errors import DataError
from smolmoe.probing.counting import KeptDocuments
from smolmoe.probing.linear import macro
from smolmoe.probing.separation import shares
from smolmoe.results.probe import Span

Owners = list[list[int | None]]


@dataclass(frozen=True)
class RoutingAccuracy:
    """Share classified correctly, for each layer and domain [L][D]."""

    per_token: list[list[float]]
    document_majority: list[list[float]]


def split_documents(kept: KeptDocuments, domains: Sequence[str]) -> tuple[KeptDocuments, KeptDocuments]:
    """Split each domain's documents by a hash of their texts: one half to fit on, the other to evaluate on.

    Raises:
        DataError: a domain has fewer than two documents.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for domain in domains:
        own = [index for index, document in enumerate(kept.documents) if document.domain == domain]
        if len(own) < 2:
            raise DataError(
                "the domain has fewer than two documents: one to fit on and another to evaluate on.",
                field="domain",
                value=domain,
                fix="Give more text of it, read more of it (`tokens`), or give text to fit on with `fit_data`.",
            )
        own.sort(key=lambda index: kept.documents[index].key)
        for side, part in zip(sides, (own[: len(own) // 2], own[len(own) // 2 :]), strict=True):
            side += part
    return kept.part(sides[0]), kept.part(sides[1])


def learn_owners(first: torch.Tensor, labels: Sequence[int], domains: int) -> Owners:
    """[L][E]: the domain with the largest share of tokens whose first choice is the expert.

    Args:
        first: first choices of N documents, [N, L, E].
        labels: domain index of each document.
    """
    part = shares(domain_counts(first, labels, domains))  # [L, D, E]
    best, owner = part.max(1)
    return [
        [int(index) if share > 0 else None for index, share in zip(owners, top, strict=True)]
        for owners, top in zip(owner.tolist(), best.tolist(), strict=True)
    ]


def named_owners(names: Sequence[str | None] | None, domains: Sequence[str]) -> list[int | None] | None:
    """[E]: the domain that each expert is named after; None unless every domain has an expert of its name."""
    if names is None or not set(domains) <= set(names):
        return None
    return [domains.index(name) if name in domains else None for name in names]


def domain_counts(counts: torch.Tensor, labels: Sequence[int], domains: int) -> torch.Tensor:
    """Counts of N documents [N, L, E] to [L, D, E]."""
    member = torch.nn.functional.one_hot(torch.tensor(labels), domains).double()
    return torch.einsum("nd,nle->lde", member, counts.double())


def routing_accuracy(first: torch.Tensor, labels: Sequence[int], owners: Owners, domains: int) -> RoutingAccuracy:
    """The share of tokens whose first choice belongs to their domain, and of documents with a majority of them.

    Args:
        first: first choices of N documents, [N, L, E].
        labels: domain index of each document.
        owners: domain index of each expert, [L][E].
    """
    votes = _votes(first, owners, domains)
    total = domain_counts(first, labels, domains).sum(-1).clamp_min(1)  # [L, D]
    told = domain_counts(votes, labels, domains).diagonal(dim1=1, dim2=2)
    return RoutingAccuracy((told / total).tolist(), _majority(votes, labels, domains).tolist())


def last_third(layers: Sequence[int]) -> list[int]:
    """Positions of the last third of the layers, rounded up."""
    return list(range(len(layers) - math.ceil(len(layers) / 3), len(layers)))


def over_layers(
    positions: Sequence[int],
    layers: Sequence[int],
    first: torch.Tensor,
    labels: Sequence[int],
    owners: Owners,
    ceilings: Mapping[str, list[list[float]] | None],
) -> Span:
    """Accuracy over the layers at these positions.

    Args:
        layers: indices of all MoE layers.
        first, labels, owners: as for `routing_accuracy`.
        ceilings: "router" and "dense": [L][D] of the linear probes, or None.
    """
    at = list(positions)
    domains = len(next(iter(ceilings["router"] or [])))
    per_token = routing_accuracy(first, labels, owners, domains).per_token
    own = _mean(per_token, at)
    votes = _votes(first, owners, domains)[:, at].sum(1, keepdim=True)
    ceiling, dense = _mean(ceilings["router"] or [], at), ceilings["dense"]
    dense_mean = None if dense is None else _mean(dense, at)
    return Span(
        layers=[layers[position] for position in at],
        accuracy=macro(own),
        per_domain=own,
        document_majority=_majority(votes, labels, domains)[0].tolist(),
        ceiling=macro(ceiling),
        ceiling_per_domain=ceiling,
        dense_ceiling=None if dense_mean is None else macro(dense_mean),
        dense_ceiling_per_domain=dense_mean,
    )


def _votes(first: torch.Tensor, owners: Owners, domains: int) -> torch.Tensor:
    """[N, L, D]: number of first choices among each domain's experts."""
    member = torch.zeros(len(owners), len(owners[0]), domains, dtype=torch.float64)
    for layer, row in enumerate(owners):
        for expert, owner in enumerate(row):
            if owner is not None:
                member[layer, expert, owner] = 1
    return torch.einsum("nle,led->nld", first.double(), member)


def _majority(votes: torch.Tensor, labels: Sequence[int], domains: int) -> torch.Tensor:
    """[L, D]: the share of each domain's documents in which its experts get more votes than any other's."""
    member = torch.nn.functional.one_hot(torch.tensor(labels), domains).double()  # [N, D]
    own = (votes * member[:, None, :]).sum(-1)
    other = votes.masked_fill(member[:, None, :].bool(), -1).amax(-1)
    right = (own > other).double()  # [N, L]; a tie counts as wrong
    return torch.einsum("nl,nd->ld", right, member) / member.sum(0).clamp_min(1)


def _mean(values: Sequence[Sequence[float]], positions: Sequence[int]) -> list[float]:
    """Of each domain over the layers at these positions, from [L][D]."""
    return [sum(column) / len(positions) for column in zip(*(values[at] for at in positions), strict=True)]
