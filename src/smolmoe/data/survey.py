"""A text before it is trained on: its domains, their documents and tokens, and how long the documents are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smolmoe.core.progress import Progress
from smolmoe.data.embedded import is_held_out
from smolmoe.data.rows import distinct
from smolmoe.data.text import Document
from smolmoe.data.tokens import encode_documents
from smolmoe.errors import DataError
from smolmoe.recipe.data import DataRecipe

SHARES = (0.02, 0.05, 0.1, 0.2)  # to hold out, in the order of preference
SAMPLED = 200  # documents of a domain whose tokens are counted
SAMPLED_CHARACTERS = 20_000  # of a document; the tokens of the rest are extrapolated
FEWEST_HELD_OUT = 10  # documents of a domain: fewer say little
FEWEST = 20  # documents of a domain in all


@dataclass
class Domain:
    """The documents of one domain.

    Attributes:
        held_out: their number for each share of `SHARES`, or for all of them if there is separate held-out text.
        tokens: of all documents, estimated from a sample.
        lengths: in tokens, of a sample.
    """

    name: str
    documents: int = 0
    characters: int = 0
    held_out: list[int] = field(default_factory=lambda: [0] * len(SHARES))
    tokens: int = 0
    lengths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """What a text holds.

    Attributes:
        domains: by name, in alphabetical order; "" has the documents without one.
        repeated: documents whose text occurs before.
        share: of the documents to hold out.
        own_held_out: whether there is separate held-out text.
    """

    domains: dict[str, Domain]
    repeated: int
    share: float
    own_held_out: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The domains that have names."""
        return tuple(name for name in self.domains if name)

    @property
    def tokens(self) -> int:
        """To train on, estimated."""
        whole = sum(domain.tokens for domain in self.domains.values())
        return int(whole * (1 if self.own_held_out else 1 - self.share))

    @property
    def documents(self) -> int:
        return sum(domain.documents for domain in self.domains.values())

    def length(self, share: float) -> int:
        """Tokens that this share of the documents does not exceed."""
        lengths = sorted(
            (length, domain.documents / len(domain.lengths))
            for domain in self.domains.values()
            for length in domain.lengths
        )
        wanted, below = share * sum(weight for _, weight in lengths), 0.0
        for length, weight in lengths:
            below += weight
            if below >= wanted:
                return length
        return 0

    def shorter(self, length: int) -> float:
        """Share of the documents with at most so many tokens."""
        counted = [
            (domain.documents, sum(one <= length for one in domain.lengths) / len(domain.lengths))
            for domain in self.domains.values()
            if domain.lengths
        ]
        return sum(number * share for number, share in counted) / max(1, sum(number for number, _ in counted))


def survey(recipe: DataRecipe, tokenizer: Any, *, report: Progress | None = None) -> Survey:
    """Read a text once, and count.

    Raises:
        DataError: it cannot be read, has no text, or a domain has too few documents.
    """
    domains: dict[str, Domain] = {}
    samples: dict[str, list[str]] = {}
    repeated, rng = 0, random.Random(0)

    def again(document: Document) -> None:
        nonlocal repeated
        repeated += 1

    own = bool(recipe.validation)
    for number, (document, held) in enumerate(distinct(recipe, repeated=again), 1):
        name = document.domain or ""
        domain = domains.setdefault(name, Domain(name))
        if own and held:
            domain.held_out = [count + 1 for count in domain.held_out]
        else:
            domain.documents += 1
            domain.characters += len(document.text)
            _sample(samples.setdefault(name, []), domain.documents, document.text, rng)
            if not own:
                for at, share in enumerate(SHARES):
                    domain.held_out[at] += is_held_out(document.text, share)
        if report is not None and number % 100 == 0:
            report("Reading the text", number, 0)
    for name, texts in samples.items():
        _count_tokens(domains[name], texts, tokenizer)
    chosen = _share(list(domains.values()))
    found = Survey({name: domains[name] for name in sorted(domains)}, repeated, SHARES[chosen], own)
    _check(found, chosen)
    return found


def _sample(texts: list[str], number: int, text: str, rng: random.Random) -> None:
    """Keep a uniform sample of `SAMPLED` documents."""
    if len(texts) < SAMPLED:
        texts.append(text)
    elif (at := rng.randrange(number)) < SAMPLED:
        texts[at] = text


def _count_tokens(domain: Domain, texts: Sequence[str], tokenizer: Any) -> None:
    cut = [text[:SAMPLED_CHARACTERS] for text in texts]
    counts = map(len, encode_documents(tokenizer, cut))
    domain.lengths = [
        round(count * len(text) / len(part)) for count, text, part in zip(counts, texts, cut, strict=True)
    ]
    domain.tokens = round(domain.characters * sum(domain.lengths) / max(1, sum(map(len, texts))))


def _share(domains: Sequence[Domain]) -> int:
    """The first of `SHARES` that holds out enough documents of every domain, or the last."""
    enough = (at for at in range(len(SHARES)) if all(one.held_out[at] >= FEWEST_HELD_OUT for one in domains))
    return next(enough, len(SHARES) - 1)


def _check(found: Survey, share: int) -> None:
    if not found.documents:
        raise DataError("there is no text.", field="data", value="", fix="Name files or folders with text.")
    for domain in found.domains.values():
        name = f"the domain {domain.name!r}" if domain.name else "the text"
        if domain.documents < FEWEST or domain.held_out[share] < 2:
            raise DataError(
                f"{name} has {domain.documents} different documents"
                + (f", {domain.held_out[share]} of them held out" if domain.documents >= FEWEST else "")
                + f"; at least {FEWEST} are needed, 2 of them held out.",
                field="data",
                value=domain.name or "untagged",
                fix="Add documents, merge it with another domain, or leave it out.",
            )
