"""Inputs of modules of a running model: those of routers, and of a dense model's FFNs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import ffn_parts, find_layers
from smolmoe.probing.counting import forward
from smolmoe.probing.documents import Batch, TaggedDocument, batches
from smolmoe.probing.linear import LinearProbe, fit_linear_probe

SAMPLE_BYTES = 1 << 30  # of the stored inputs, over all layers
CONTEXT = 8  # tokens read per stored token, so that the stored ones come from many texts
FEWEST_TOKENS = 64


@dataclass(frozen=True)
class Windows:
    """How documents are cut into batches; see `batches`."""

    start: int
    length: int
    batch_tokens: int

    def of(self, documents: Sequence[TaggedDocument], device: Any) -> Iterator[Batch]:
        return batches(documents, start=self.start, length=self.length, batch_tokens=self.batch_tokens, device=device)


@dataclass(frozen=True)
class Sample:
    """Inputs of L modules, [T, D] each, and the class [T] of every token."""

    inputs: list[torch.Tensor]
    labels: torch.Tensor


class InputTap:
    """Runs a model and returns the inputs of L of its modules, for the tokens of text of each batch."""

    def __init__(self, model: Any, modules: Sequence[nn.Module]):
        self.model = model
        self._modules = list(modules)

    def read(self, batch: Batch) -> list[torch.Tensor]:
        """[T, D] of each module."""
        keep = batch.keep.flatten()
        with torch.inference_mode(), self._recording() as seen:
            forward(self.model, batch.inputs)
        return [seen[id(module)].flatten(0, -2)[keep] for module in self._modules]

    @contextmanager
    def _recording(self) -> Iterator[dict[int, torch.Tensor]]:
        seen: dict[int, torch.Tensor] = {}

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[id(module)] = args[0] if args else kwargs["hidden_states"]

        handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in self._modules]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def router_tap(model: Any) -> InputTap:
    """The inputs of all routers of an MoE."""
    return InputTap(model, [router for _, router in find_routers(model)])


def dense_tap(model: Any, layers: Sequence[int]) -> InputTap:
    """The FFN inputs of a dense model at these layers.

    Raises:
        RequestError: it has no such layer, or it is an MoE.
        SourceError: a layer's FFN is not a separate module.
    """
    _, found = find_layers(model)
    if find_routers(model):
        raise RequestError("is a Mixture-of-Experts, not a dense model.", field="dense", value=type(model).__name__)
    if len(found) <= max(layers):
        raise RequestError(
            f"has {len(found)} layers, the MoE has experts in layer {max(layers)}.",
            field="dense",
            value=type(model).__name__,
            fix="Name the dense model that the MoE was made from.",
        )
    parts = [ffn_parts(found[layer]) for layer in layers]
    if not all(parts):
        raise SourceError("its FFN is not a separate module.", field="dense", value=type(model).__name__)
    return InputTap(model, [part[0] for part in parts])


def sample_inputs(
    tap: InputTap, documents: Sequence[TaggedDocument], domains: Sequence[str], windows: Windows, tokens: int, seed: int
) -> Sample:
    """About `tokens` tokens of each domain, spread over its documents; fewer if they exceed a gigabyte."""
    device = tap.model.device
    width = tap.model.config.get_text_config().hidden_size
    tokens = min(tokens, max(FEWEST_TOKENS, SAMPLE_BYTES // (4 * len(tap._modules) * width * len(domains))))
    few = [document for domain in domains for document in _enough(documents, domain, CONTEXT * tokens)]
    there = {domain: sum(len(d.ids) for d in few if d.domain == domain) for domain in domains}
    chance = torch.tensor([min(1.0, tokens / max(1, there[document.domain])) for document in few])
    labels = torch.tensor([domains.index(document.domain) for document in few])
    generator = torch.Generator().manual_seed(seed)
    kept: list[list[torch.Tensor]] = []
    kept_labels: list[torch.Tensor] = []
    for batch in windows.of(few, device):
        owners = batch.owners.cpu()[:, None].expand(batch.keep.shape)[batch.keep.cpu()]
        drawn = torch.rand(len(owners), generator=generator) < chance[owners]
        if drawn.any():
            kept.append([x[drawn.to(device)].float() for x in tap.read(batch)])
            kept_labels.append(labels[owners[drawn]])
    return Sample([torch.cat(layer) for layer in zip(*kept, strict=True)], torch.cat(kept_labels).to(device))


def fit_probes(sample: Sample, classes: int) -> list[LinearProbe]:
    """One linear probe per module."""
    return [fit_linear_probe(x, sample.labels, classes) for x in sample.inputs]


def judge_probes(
    tap: InputTap,
    probes: Sequence[LinearProbe],
    documents: Sequence[TaggedDocument],
    domains: Sequence[str],
    windows: Windows,
) -> list[list[float]]:
    """[L][D]: share of the tokens of these documents that each layer's probe classifies correctly, by domain."""
    device = tap.model.device
    labels = torch.tensor([domains.index(document.domain) for document in documents], device=device)
    right = torch.zeros(len(probes), len(domains), device=device)
    total = torch.zeros(len(domains), device=device)
    for batch in windows.of(documents, device):
        of_token = labels[batch.owners][:, None].expand(batch.keep.shape)[batch.keep]
        total.index_add_(0, of_token, torch.ones_like(of_token, dtype=total.dtype))
        for layer, (probe, x) in enumerate(zip(probes, tap.read(batch), strict=True)):
            right[layer].index_add_(0, of_token, (probe.predict(x) == of_token).to(right.dtype))
    return (right / total.clamp_min(1)).tolist()


def _enough(documents: Sequence[TaggedDocument], domain: str, tokens: int) -> list[TaggedDocument]:
    """Documents of a domain in random order, up to that many tokens."""
    taken: list[TaggedDocument] = []
    left = tokens
    for document in sorted((d for d in documents if d.domain == domain), key=lambda d: d.key):
        if left <= 0:
            break
        taken.append(document)
        left -= len(document.ids)
    return taken
