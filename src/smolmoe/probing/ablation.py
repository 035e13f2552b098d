"""The effect on each domain's loss of forcing a group of experts on all tokens, or of removing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.core.statistics import Interval
from smolmoe.evaluation.held_out import (
    DocumentLosses,
    HeldOut,
    difference_of_differences,
    document_losses,
    paired_difference,
)
from smolmoe.moe.names import group_by_name
from smolmoe.moe.restrict import only_experts, without_experts
from smolmoe.probing.accuracy import Owners
from smolmoe.results.probe import Losses, Similarity
from smolmoe.results.probe_findings import Paid, are_copies, copies_said, flags, summary

MOST_SINGLE = 16  # experts that are forced one at a time
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Group:
    """Experts that are forced or removed together, by layer index; `domain` is their domain."""

    label: str
    experts: Mapping[int, tuple[int, ...]]
    domain: str | None = None


def named_groups(
    names: Sequence[str | None], layers: Sequence[int], domains: Sequence[str], chosen: Sequence[int] | None
) -> list[Group]:
    """A group for each name, and one for each free expert if they are few.

    Args:
        layers: indices of the MoE layers.
        chosen: the layers guided by name, None for all; the others are not forced.
    """
    where = [layer for layer in layers if chosen is None or layer in chosen]
    groups = [
        Group(name, dict.fromkeys(where, members), name if name in domains else None)
        for name, members in group_by_name(names).items()
    ]
    free = [index for index, name in enumerate(names) if name is None]
    return groups + single_groups(free if len(free) <= MOST_SINGLE else [], where)


def single_groups(experts: Sequence[int], layers: Sequence[int]) -> list[Group]:
    """Each expert alone, with the same index in every layer."""
    return [Group(f"expert {index}", dict.fromkeys(layers, (index,))) for index in experts]


def owned_groups(
    owners: Owners, favourites: Sequence[Sequence[int]], layers: Sequence[int], domains: Sequence[str]
) -> list[Group]:
    """For each domain its experts, layer by layer.

    Args:
        owners: domain of each expert, [L][E].
        favourites: [L][D], the expert that a domain chooses most, for layers without an expert of the domain.
    """
    groups = []
    for index, domain in enumerate(domains):
        experts = {}
        for place, layer in enumerate(layers):
            own = tuple(expert for expert, owner in enumerate(owners[place]) if owner == index)
            experts[layer] = own or (favourites[place][index],)
        groups.append(Group(f"experts of {domain}", experts, domain))
    return groups


def measure_losses(
    model: Any,
    held_out: HeldOut,
    domains: Sequence[str],
    groups: Sequence[Group],
    experts: int,
    *,
    dense: Any | None = None,
    similarity: Similarity | None = None,
    layers: Sequence[int] = (),
    batch: int = 16,
    tell: Tell | None = None,
) -> Losses:
    """Held-out losses of each domain: unchanged, with each group forced, and with each removed.

    Args:
        held_out: windows of documents that nothing was fitted to.
        experts: E.
        dense: the dense model, to compare with.
        similarity: of the experts in `layers`, if known; nothing is claimed for copies.
        tell: called with the number of passes done and their total.

    Raises:
        RequestError: a layer lacks experts of a group; TargetError: routers of an unknown class.
    """
    passes = 1 + 2 * len(groups) + (dense is not None)
    tell = tell or (lambda done, total: None)
    tell(0, passes)
    base = document_losses(model, held_out, batch=batch)
    forced: list[DocumentLosses] = []
    without: list[DocumentLosses | None] = []
    for group in groups:
        with only_experts(model, group.experts):
            forced.append(document_losses(model, held_out, batch=batch))
        without.append(_without(model, held_out, group, experts, batch))
        tell(1 + 2 * len(forced), passes)
    of_dense = None if dense is None else document_losses(dense, held_out, batch=batch)
    own = [next((at for at, group in enumerate(groups) if group.domain == domain), None) for domain in domains]
    copied = [at for at, group in enumerate(groups) if similarity is not None and _is_copy(group, similarity, layers)]
    paid = [
        _paid(domain, groups, own, base, forced, without, of_dense, copied=at in copied)
        for domain, at in zip(domains, own, strict=True)
    ]
    return Losses(
        base=base.by_domain,
        labels=[group.label for group in groups],
        own=own,
        forced=[[losses.by_domain[domain] for losses in forced] for domain in domains],
        knocked_out=[
            [None if losses is None else losses.by_domain[domain] for losses in without] for domain in domains
        ],
        dense=None if of_dense is None else of_dense.by_domain,
        tokens={domain: sum(base.part(domain).tokens) for domain in domains},
        flags=flags(paid, None if similarity is None else copies_said(similarity.output_cosine, layers)),
        documents={one.domain: one.documents for one in paid},
        forced_gap=[one.forced_gap for one in paid],
        knocked_out_gap=[one.knocked_out_gap for one in paid],
        elsewhere_gap=[one.elsewhere_gap for one in paid],
        dense_gap=[one.dense_gap for one in paid],
        copied=[one.domain for one in paid if one.copies],
        summary=summary(paid),
    )


def _is_copy(group: Group, similarity: Similarity, layers: Sequence[int]) -> bool:
    return are_copies(dict(group.experts), similarity, {layer: place for place, layer in enumerate(layers)})


def _without(model: Any, held_out: HeldOut, group: Group, experts: int, batch: int) -> DocumentLosses | None:
    """The losses without the group; None if no expert would be left."""
    if any(len(members) == experts for members in group.experts.values()):
        return None
    with without_experts(model, group.experts):
        return document_losses(model, held_out, batch=batch)


def _paid(
    domain: str,
    groups: Sequence[Group],
    own: Sequence[int | None],
    base: DocumentLosses,
    forced: Sequence[DocumentLosses],
    without: Sequence[DocumentLosses | None],
    dense: DocumentLosses | None,
    *,
    copied: bool,
) -> Paid:
    """The measurements of a domain, with intervals."""
    mine = next((at for at in own if at is not None and groups[at].domain == domain), None)
    rivals = [at for at in own if at is not None and at != mine]
    rival = min(rivals, key=lambda at: forced[at].by_domain[domain]) if mine is not None and rivals else None
    out = None if mine is None else without[mine]
    harm = {} if out is None else {name: out.by_domain[name] - loss for name, loss in base.by_domain.items()}
    elsewhere = max((name for name in harm if name != domain), key=lambda name: harm[name], default=None)
    return Paid(
        domain=domain,
        label="" if mine is None else groups[mine].label,
        documents=base.domains.count(domain),
        base=base.by_domain[domain],
        forced=None if mine is None else forced[mine].by_domain[domain],
        rival=None if rival is None else groups[rival].domain,
        forced_gap=None if mine is None or rival is None else _gap(forced[mine], forced[rival], domain),
        knocked_out_gap=None if out is None else _gap(out, base, domain),
        elsewhere=elsewhere,
        elsewhere_documents=0 if elsewhere is None else base.domains.count(elsewhere),
        elsewhere_gap=None if out is None or elsewhere is None else _more_than(out, base, domain, elsewhere),
        dense_gap=None if dense is None else _gap(base, dense, domain),
        copies=copied,
    )


def _gap(a: DocumentLosses, b: DocumentLosses, domain: str) -> Interval:
    return Interval(*paired_difference(a.part(domain), b.part(domain)))


def _more_than(out: DocumentLosses, base: DocumentLosses, domain: str, other: str) -> Interval:
    """How much more a domain loses than another."""
    here, there = ((out.part(name), base.part(name)) for name in (domain, other))
    return Interval(*difference_of_differences(here, there))
