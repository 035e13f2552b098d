"""A few short texts, token by token, with the experts of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolmoe.probing.counting import Runner
from smolmoe.probing.documents import TaggedDocument, batches
from smolmoe.probing.token_types import token_texts
from smolmoe.results.probe import Excerpt

TOKENS = 60
EACH = 2


def take_excerpts(
    runner: Runner, documents: Sequence[TaggedDocument], domains: Sequence[str], tokenizer: Any, *, start: int
) -> list[Excerpt]:
    """The beginnings of two documents of each domain, with choices and gates at each layer, the first choice first."""
    found = []
    for domain in domains:
        own = sorted((d for d in documents if d.domain == domain), key=lambda d: (len(d.ids) < TOKENS, d.key))[:EACH]
        for document in own:
            short = TaggedDocument(document.ids[:TOKENS], domain, document.key)
            batch = next(batches([short], start=start, length=TOKENS + 1, batch_tokens=1, device=runner.model.device))
            chosen = runner.chosen(batch)
            gates = [[[round(gate, 4) for gate in token] for token in layer] for layer in chosen.gates.tolist()]
            texts = token_texts(tokenizer, list(short.ids))
            found.append(Excerpt(domain, texts, chosen.experts.tolist(), gates))
    return found
