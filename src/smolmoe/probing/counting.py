"""Counts of the routers' choices, in memory that does not grow with the text."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from smolmoe.errors import SourceError
from smolmoe.moe.restrict import why_not_restricted
from smolmoe.moe.routing import RoutingCapture
from smolmoe.probing.documents import Batch, TaggedDocument, batches, chunked
from smolmoe.probing.token_types import TYPES, types_in_context

VOCABULARY_BYTES = 1 << 30  # of the counts by token id
KEPT_DOCUMENTS = 1000  # of each domain, for statistics that need single documents


@dataclass(frozen=True)
class Chosen:
    """Choices of T tokens in L layers, the first choice first: experts and gates [L, T, K]."""

    experts: torch.Tensor
    gates: torch.Tensor


@dataclass
class KeptDocuments:
    """The first documents of each domain, none twice, each with its counts [L, E] of choices and of first choices."""

    documents: list[TaggedDocument] = field(default_factory=list)
    choices: list[torch.Tensor] = field(default_factory=list)
    first: list[torch.Tensor] = field(default_factory=list)

    def part(self, places: Sequence[int]) -> KeptDocuments:
        """Those at these places."""
        documents, choices, first = self.documents, self.choices, self.first
        return KeptDocuments([documents[i] for i in places], [choices[i] for i in places], [first[i] for i in places])

    def labels(self, domains: Sequence[str]) -> list[int]:
        """The domain index of each."""
        return [domains.index(document.domain) for document in self.documents]


class RoutingCounts:
    """The choices of L routers of E experts, counted by domain and token type.

    Attributes:
        choices, first: domain -> [L, Y, E] int64, all choices and first choices.
        together: [L, E, E] int64, tokens that chose both experts.
        vocabulary: [L, V', E] int32, first choices of each token id below V', which bounds the memory.
        confidence: [L], sum of the gates of first choices.
        tokens, documents: of each domain.
        kept: the documents that are also counted separately.
    """

    def __init__(self, layers: int, experts: int, types: torch.Tensor, *, kept_documents: int = KEPT_DOCUMENTS):
        counted = min(len(types), max(1, VOCABULARY_BYTES // (4 * layers * experts)))
        device = types.device
        self.layers, self.experts, self._types = layers, experts, types
        self._kept_documents = kept_documents
        self._seen: set[tuple[str, int]] = set()
        self.choices: dict[str, torch.Tensor] = {}
        self.first: dict[str, torch.Tensor] = {}
        self.together = torch.zeros(layers, experts, experts, dtype=torch.int64, device=device)
        self.vocabulary = torch.zeros(layers, counted, experts, dtype=torch.int32, device=device)
        self.confidence = torch.zeros(layers, device=device)
        self.tokens: Counter[str] = Counter()
        self.documents: Counter[str] = Counter()
        self.kept = KeptDocuments()

    def add(self, documents: list[TaggedDocument], seen: Iterable[tuple[Batch, Chosen]]) -> None:
        """Count documents, from their batches and the choices for their tokens."""
        cells = (self.layers, len(documents), len(TYPES), self.experts)
        choices = torch.zeros(cells, dtype=torch.int64, device=self._types.device)
        first = torch.zeros_like(choices)
        for batch, chosen in seen:
            self._add_batch(batch, chosen, choices, first)
        counts = choices.sum(2).int().cpu(), first.sum(2).int().cpu()
        for index, document in enumerate(documents):
            self.tokens[document.domain] += len(document.ids)
            self.documents[document.domain] += 1
            self._keep(document, counts[0][:, index], counts[1][:, index])
        self._add_domains([document.domain for document in documents], choices, first)

    def _add_batch(self, batch: Batch, chosen: Chosen, choices: torch.Tensor, first: torch.Tensor) -> None:
        types = types_in_context(self._types, batch.inputs)
        kinds = (batch.owners[:, None] * len(TYPES) + types)[batch.keep]  # [T]
        real = chosen.gates != 0  # experts excluded by capacity or top-p were not chosen
        _count(choices, kinds, chosen.experts, real)
        _count(first, kinds, chosen.experts[..., :1], real[..., :1])
        hits = torch.zeros(*kinds.shape, self.experts, device=kinds.device).expand(self.layers, -1, -1).clone()
        hits.scatter_(-1, chosen.experts, real.float())
        self.together += (hits.transpose(1, 2) @ hits).long()
        self.confidence += chosen.gates[..., 0].float().sum(-1)
        ids = batch.inputs[batch.keep]
        known = ids < self.vocabulary.shape[1]
        _count(self.vocabulary, ids.where(known, 0), chosen.experts[..., :1], real[..., :1] & known[:, None])

    def _keep(self, document: TaggedDocument, choices: torch.Tensor, first: torch.Tensor) -> None:
        if (document.domain, document.key) in self._seen or self.documents[document.domain] > self._kept_documents:
            return
        self._seen.add((document.domain, document.key))
        self.kept.documents.append(document)
        self.kept.choices.append(choices.clone())  # not a view, so that the rest is freed
        self.kept.first.append(first.clone())

    def _add_domains(self, domains: list[str], choices: torch.Tensor, first: torch.Tensor) -> None:
        for domain in set(domains):
            chosen = torch.tensor([name == domain for name in domains], device=choices.device)
            for total, counts in ((self.choices, choices), (self.first, first)):
                part = counts[:, chosen].sum(1)
                total[domain] = total[domain] + part if domain in total else part


class Runner:
    """An MoE that returns its choices for batches of windows.

    Attributes:
        layers: indices of the MoE layers.
        experts, top_k: E and K.

    Raises:
        SourceError: the model is dense, or its layers have different numbers of experts.
    """

    def __init__(self, model: Any):
        self.model = model
        self._capture = RoutingCapture(model)
        self.layers = self._capture.layers
        # Two tokens show the sizes, whatever their names in the class.
        chosen = self._routings(torch.zeros(1, 2, dtype=torch.long, device=model.device))
        sizes = {(routing.experts, routing.top_k) for routing in chosen}
        if len(sizes) > 1:
            raise SourceError("its layers have different numbers of experts.", field="model", value=sorted(sizes))
        self.experts, self.top_k = sizes.pop()

    def chosen(self, batch: Batch) -> Chosen:
        """The choices for the batch's tokens of text, in their order."""
        routings = self._routings(batch.inputs)
        keep = batch.keep.flatten()
        gates = torch.stack([routing.weights for routing in routings])[:, keep]
        experts = torch.stack([routing.indices for routing in routings])[:, keep]
        gates, order = gates.sort(stable=True, dim=-1, descending=True)
        return Chosen(experts.gather(-1, order), gates)

    def why_not_restricted(self) -> str | None:
        """Why experts cannot be forced or removed; None if they can."""
        inputs = torch.arange(8, device=self.model.device)[None]
        return why_not_restricted(self.model, self._capture, inputs)

    def _routings(self, inputs: torch.Tensor) -> list[Any]:
        self._capture.clear()
        with torch.inference_mode(), self._capture:
            forward(self.model, inputs)
        routings = [self._capture.routing(layer) for layer in self._capture.layers]
        self._capture.clear()
        return routings


def forward(model: Any, inputs: torch.Tensor) -> None:
    """Run the layers; only the last token's logits are computed, because none are used."""
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    model(input_ids=inputs, use_cache=False, **extra)


def count_routing(
    runner: Runner,
    documents: Iterable[TaggedDocument],
    types: torch.Tensor,
    *,
    start: int,
    length: int,
    batch_tokens: int,
    kept_documents: int = KEPT_DOCUMENTS,
) -> RoutingCounts:
    """Count the choices on a stream of documents, each in separate windows.

    Args:
        types: the type of every token id (`token_types`).
        start, length, batch_tokens: as for `batches`.
        kept_documents: per domain, to count separately.
    """
    types = types.to(runner.model.device)
    counts = RoutingCounts(len(runner.layers), runner.experts, types, kept_documents=kept_documents)
    for chunk in chunked(documents):
        cut = batches(chunk, start=start, length=length, batch_tokens=batch_tokens, device=types.device)
        counts.add(chunk, ((batch, runner.chosen(batch)) for batch in cut))
    return counts


def _count(table: torch.Tensor, rows: torch.Tensor, experts: torch.Tensor, real: torch.Tensor) -> None:
    """table[l, row of t, e] += 1 for the experts [L, T, k] of T tokens in L layers, for real tokens.

    Args:
        table: [L, ..., E], contiguous.
        rows: [T], flat index into the dimensions between.
    """
    layers, width = table.shape[0], table.shape[-1]
    size = table[0].numel()
    at = experts + (rows * width)[:, None] + (torch.arange(layers, device=rows.device) * size)[:, None, None]
    table.view(-1).index_add_(0, at.flatten(), real.flatten().to(table.dtype))
