"""Findings of losses with experts forced and knocked out, in sentences: copies first, and noise is not a finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smolmoe.core.statistics import FEWEST_DOCUMENTS, NO_DIFFERENCE, Interval, evidence, shortly, side, too_few
from smolmoe.core.words import listed
from smolmoe.results.probe import Similarity

NOBODYS = "No domain has experts that could be knocked out."
_SIDES = {
    "higher": "higher",
    "lower": "lower",
    "none": NO_DIFFERENCE,
    "few": f"too few documents for a finding (at least {FEWEST_DOCUMENTS})",
}
# Cosine of their outputs from which two experts are copies, up to rounding. Not their CKA: a few large directions, in
# early layers of pretrained models, make it .99999 for experts with a cosine of .9998. Experts that a short
# training specialised differ no more, and removing one costs its domain up to .18 nats (benchmarks/real.py).
COPIES = 0.99999
NOT_OF_COPIES = "no specialisation is claimed for copies."


@dataclass(frozen=True)
class Paid:
    """The measurements of one domain and its experts.

    Attributes:
        domain: its name.
        label: of the group of its experts.
        documents: of the domain.
        base, forced: losses of the unchanged model, and with its experts forced.
        forced_gap: forced to its experts minus forced to those of `rival`, the domain of the best other group.
        knocked_out_gap: without its experts minus unchanged.
        elsewhere_gap: that difference minus the same of the domain `elsewhere`, which it harms most.
        dense_gap: unchanged minus the dense model.
        copies: its experts are copies of others.
    """

    domain: str
    label: str
    documents: int
    base: float
    forced: float | None
    rival: str | None
    forced_gap: Interval | None
    knocked_out_gap: Interval | None
    elsewhere: str | None
    elsewhere_documents: int
    elsewhere_gap: Interval | None
    dense_gap: Interval | None
    copies: bool


def copies_among(cosine: Sequence[Sequence[float]]) -> list[set[int]]:
    """The sets of experts of a layer that are copies of each other.

    Args:
        cosine: of the outputs of every two experts, [E][E].
    """
    found: list[set[int]] = []
    for expert, row in enumerate(cosine):
        alike = {other for other, value in enumerate(row) if other != expert and value >= COPIES}
        if alike and not any(expert in one for one in found):
            found.append({expert, *alike})
    return found


def are_copies(experts: dict[int, tuple[int, ...]], similarity: Similarity, places: dict[int, int]) -> bool:
    """Whether these experts of each layer are all copies of experts outside the set."""
    return bool(experts) and all(
        any(member in one and not one <= set(members) for one in copies_among(similarity.output_cosine[places[layer]]))
        for layer, members in experts.items()
        for member in members
    )


def copies_alone(cosine: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether all experts of every layer are copies of each other.

    Args:
        cosine: of the outputs of every two experts of each layer, [L][E][E].
    """
    return all(any(len(one) == len(layer) for one in copies_among(layer)) for layer in cosine)


def copies_said(cosine: Sequence[Sequence[Sequence[float]]], layers: Sequence[int]) -> str | None:
    """A sentence on the layers whose experts are copies; None without copies.

    Args:
        cosine: of the outputs of every two experts of each layer, [L][E][E].
    """
    experts = len(cosine[0]) if cosine else 0
    all_alike, some = [], []
    for place, layer in enumerate(layers):
        sets = copies_among(cosine[place])
        if any(len(one) == experts for one in sets):
            all_alike.append(layer)
        elif sets:
            some.append(f"layer {layer}: {'; '.join(listed(sorted(one)) for one in sets)}")
    said = []
    if all_alike:
        named = f"layer{'s' * (len(all_alike) > 1)} {listed(all_alike)}"
        where = "every layer" if len(all_alike) == len(layers) else named
        said.append(f"in {where} all {experts} experts are copies of each other")
    if some:
        said.append(f"some experts are copies of each other ({', '.join(some)})")
    if not said:
        return None
    sentence = f"{' and '.join(said)} (cosine of their outputs at least {COPIES}): {NOT_OF_COPIES}"
    return sentence[0].upper() + sentence[1:]


def flags(found: Sequence[Paid], copies: str | None) -> list[str]:
    """The findings; those that rule out others come first."""
    few = too_few({one.domain: one.documents for one in found})
    first = [*([copies] if copies else []), *([f"{few[0].upper()}{few[1:]}."] if few else [])]
    return first + [flag for one in found for flag in (*_of_own(one), *_of_dense(one))]


def _of_own(one: Paid) -> Iterator[str]:
    if one.copies:
        return
    if one.forced_gap is not None and side(one.forced_gap, one.documents) == "higher":
        yield (
            f"{one.domain}: forced to its own experts ({one.label}) its loss is {one.forced:.4f}, worse than with "
            f"those of {one.rival}, {evidence(one.forced_gap, one.documents)}: "
            "its specialisation makes this domain worse."
        )
    if one.knocked_out_gap is None:
        return
    if side(one.knocked_out_gap, one.documents) == "lower":
        yield (
            f"{one.domain}: without its own experts ({one.label}) its loss is lower, "
            f"{evidence(one.knocked_out_gap, one.documents)}: it does not need them."
        )
    elif one.elsewhere_gap is not None:
        documents = min(one.documents, one.elsewhere_documents)
        if side(one.elsewhere_gap, documents) == "lower":
            yield (
                f"{one.domain}: taking its own experts ({one.label}) out hurts {one.elsewhere} more than {one.domain}, "
                f"by {evidence(one.elsewhere_gap.turned(), documents)}."
            )


def _of_dense(one: Paid) -> Iterator[str]:
    if one.dense_gap is not None and side(one.dense_gap, one.documents) == "higher":
        yield (
            f"{one.domain}: its loss is {one.base:.4f}, worse than the dense model's, "
            f"{evidence(one.dense_gap, one.documents)}."
        )


def summary(found: Sequence[Paid]) -> list[str]:
    """For every domain, the effect of its experts, and its loss compared with the dense model's."""
    own = [one for one in found if one.knocked_out_gap is not None]
    copied = [one.domain for one in own if one.copies]
    told = _by_side([(one.domain, one.knocked_out_gap, one.documents) for one in own if not one.copies])
    told += [f"not judged for {listed(copied)}, whose own experts are copies of others"] if copied else []
    said = [f"Loss without a domain's own experts: {'; '.join(told)}." if told else NOBODYS]
    dense = _by_side([(one.domain, one.dense_gap, one.documents) for one in found])
    return [*said, *([f"Loss compared with the dense model: {'; '.join(dense)}."] if dense else [])]


def _by_side(gaps: Sequence[tuple[str, Interval | None, int]]) -> list[str]:
    """The domains grouped by result: higher, lower, no difference, too few documents."""
    said = []
    for kind, words in _SIDES.items():
        of_kind = [
            f"{domain} ({shortly(gap, documents)})"
            for domain, gap, documents in gaps
            if gap is not None and side(gap, documents) == kind
        ]
        said += [f"{words} for {listed(of_kind)}"] if of_kind else []
    return said
