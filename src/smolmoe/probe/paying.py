"""Does it pay: what a group of experts, forced on all tokens or taken out, does to each domain's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.evaluate.held_out import DocumentLosses, HeldOut, document_losses, paired_difference
from smolmoe.moe.names import group_by_name
from smolmoe.moe.restrict import only_experts, without_experts
from smolmoe.probe.accuracy import Owners
from smolmoe.probe.results import Losses

MOST_SINGLE = 16  # experts that are forced one by one
FEWEST_DOCUMENTS = 5  # for an interval by resampling them
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Group:
    """Experts that are forced or taken out together: for each layer index those of it; `domain` is whose they are."""

    label: str
    experts: Mapping[int, tuple[int, ...]]
    domain: str | None = None


def named_groups(
    names: Sequence[str | None], layers: Sequence[int], domains: Sequence[str], chosen: Sequence[int] | None
) -> list[Group]:
    """A group for each name, and one for each free expert where there are few.

    Args:
        layers: indices of the MoE layers.
        chosen: those guided by name, None for all; in the others nothing is forced.
    """
    where = [layer for layer in layers if chosen is None or layer in chosen]
    groups = [
        Group(name, dict.fromkeys(where, members), name if name in domains else None)
        for name, members in group_by_name(names).items()
    ]
    free = [index for index, name in enumerate(names) if name is None]
    return groups + single_groups(free if len(free) <= MOST_SINGLE else [], where)


def single_groups(experts: Sequence[int], layers: Sequence[int]) -> list[Group]:
    """Each expert alone, at the same place in every layer."""
    return [Group(f"expert {index}", dict.fromkeys(layers, (index,))) for index in experts]


def owned_groups(
    owners: Owners, favourites: Sequence[Sequence[int]], layers: Sequence[int], domains: Sequence[str]
) -> list[Group]:
    """For each domain the experts that count for it, layer by layer.

    Args:
        owners: domain of each expert, [L][E].
        favourites: [L][D], the expert that a domain chooses most, for layers in which none counts for it.
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
    batch: int = 16,
    tell: Tell | None = None,
) -> Losses:
    """Held-out losses of each domain as the model is, with each group forced, and with each taken out.

    Args:
        held_out: windows of documents that nothing was fitted to.
        experts: E.
        dense: the dense model, to compare with.
        tell: is told how many passes are done, and of how many.

    Raises:
        RequestError: a layer has not the experts of a group; TargetError: routers of an unknown class.
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
    return Losses(
        base=base.by_domain,
        labels=[group.label for group in groups],
        own=own,
        forced=[[losses.by_domain[domain] for losses in forced] for domain in domains],
        knocked_out=[
            [None if losses is None else losses.by_domain[domain] for losses in without] for domain in domains
        ],
        dense=None if of_dense is None else of_dense.by_domain,
        tokens={domain: sum(_part(base, domain).tokens) for domain in domains},
        flags=[
            *_forced_flags(domains, groups, own, forced),
            *_knocked_out_flags(domains, groups, own, base, without),
            *_dense_flags(domains, base, of_dense),
        ],
    )


def _without(model: Any, held_out: HeldOut, group: Group, experts: int, batch: int) -> DocumentLosses | None:
    """None where nothing would be left."""
    if any(len(members) == experts for members in group.experts.values()):
        return None
    with without_experts(model, group.experts):
        return document_losses(model, held_out, batch=batch)


def _forced_flags(
    domains: Sequence[str], groups: Sequence[Group], own: Sequence[int | None], forced: Sequence[DocumentLosses]
) -> list[str]:
    flags = []
    for domain, mine in zip(domains, own, strict=True):
        others = [at for at in own if at is not None and at != mine]
        if mine is None or not others:
            continue
        best = min(others, key=lambda at: forced[at].by_domain[domain])
        if worse := _worse(forced[mine], forced[best], domain):
            flags.append(
                f"{domain}: forced to its own experts ({groups[mine].label}) its loss is "
                f"{forced[mine].by_domain[domain]:.4f}, {worse} than with those of {groups[best].domain}: its "
                "specialisation makes this domain worse."
            )
    return flags


def _knocked_out_flags(
    domains: Sequence[str],
    groups: Sequence[Group],
    own: Sequence[int | None],
    base: DocumentLosses,
    without: Sequence[DocumentLosses | None],
) -> list[str]:
    flags = []
    for domain, mine in zip(domains, own, strict=True):
        losses = None if mine is None else without[mine]
        if mine is None or losses is None:
            continue
        harm = {name: losses.by_domain[name] - base.by_domain[name] for name in domains}
        most = max(harm, key=lambda name: harm[name])
        if harm[domain] <= 0:
            flags.append(
                f"{domain}: without its own experts ({groups[mine].label}) its loss changes by {harm[domain]:+.4f}: "
                "it does not need them."
            )
        elif most != domain:
            flags.append(
                f"{domain}: taking its own experts ({groups[mine].label}) out hurts {most} more "
                f"({harm[most]:+.4f}) than {domain} ({harm[domain]:+.4f})."
            )
    return flags


def _dense_flags(domains: Sequence[str], base: DocumentLosses, dense: DocumentLosses | None) -> list[str]:
    flags = []
    for domain in domains if dense is not None else ():
        assert dense is not None
        if worse := _worse(base, dense, domain):
            flags.append(f"{domain}: its loss is {base.by_domain[domain]:.4f}, {worse} than the dense model's.")
    return flags


def _worse(a: DocumentLosses, b: DocumentLosses, domain: str) -> str | None:
    """By how much the loss of `a` is worse in a domain, in words; None where it is not, or not beyond chance."""
    part = _part(a, domain)
    gap, low, high = paired_difference(part, _part(b, domain))
    if len(part.nll) < FEWEST_DOCUMENTS:
        return f"{gap:.4f} worse (on {len(part.nll)} documents, too few to rule out chance)" if gap > 0 else None
    return f"{gap:.4f} [{low:.4f}, {high:.4f}] worse" if low > 0 else None


def _part(losses: DocumentLosses, domain: str) -> DocumentLosses:
    at = [index for index, name in enumerate(losses.domains) if name == domain]
    return DocumentLosses(
        tuple(losses.nll[index] for index in at), tuple(losses.tokens[index] for index in at), (domain,) * len(at)
    )
