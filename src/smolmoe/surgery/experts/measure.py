"""The effect of removing or adding experts: logits of the written files, losses before and after, expert use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.claim import Claim
from smolmoe.data.text import Document, read_documents
from smolmoe.data.tokens import encode_documents, end_of_text
from smolmoe.errors import DataError, SourceError
from smolmoe.evaluation.held_out import DocumentLosses, HeldOut, cut_windows, document_losses, paired_difference
from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.moe.restrict import only_experts
from smolmoe.moe.routing import RoutingCapture, find_routers
from smolmoe.results.verification import Check
from smolmoe.surgery.experts.extract import Factors
from smolmoe.surgery.experts.moe_files import MoeFiles
from smolmoe.verification.checks import rounding_allowed
from smolmoe.verification.logits import Comparison
from smolmoe.verification.measure import SIDES, unpadded
from smolmoe.verification.sample import Sample, draw_sample, padded, plain

SEQUENCES, LENGTH = 6, 128
WINDOW, PER_DOCUMENT = 256, 1024  # tokens
TO_CHOOSE, TO_MEASURE = 4096, 8192  # tokens of each domain
# For a router row that no token should choose: how far its logit lies below the lowest, and the ridge term.
GAP, RIDGE = 30.0, 0.01
Available = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Measured:
    """The written model compared with the MoE it was made from, both in fp32 from the stored weights.

    Attributes:
        reference: the experts available to the MoE.
        text, tokens: the input of both.
        max_abs, mean_abs: |difference of logits|; `max_logit` is the largest |logit| of the MoE.
        kl, top1: mean KL(MoE || written) in nats, top-1 agreement.
        reference_loss, loss: next-token loss of the MoE and of the written model, in nats.
        other_experts: max_abs of the MoE restricted to other experts: the sensitivity of this measurement.
        checks: the conditions that were checked.
    """

    reference: str
    text: str
    tokens: int
    max_abs: float
    mean_abs: float
    max_logit: float
    kl: float
    top1: float
    reference_loss: float
    loss: float
    other_experts: float | None
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def measure(
    files: MoeFiles, written: Path, claim: Claim, available: Available | None, device: str, *, seed: int = 0
) -> Measured:
    """Load both models the standard way and compare them on text from this Python installation.

    Args:
        files: the MoE.
        written: the model made from it.
        claim: the claim to check.
        available: the experts available to the MoE, by layer; None for all.

    Raises:
        SourceError, CheckpointError: a folder that transformers cannot load.
    """
    tokenizer = load_tokenizer(files.folder)
    model = load_model(files.folder, device=device)
    sample = draw_sample(tokenizer, model.config, None, count=SEQUENCES, length=LENGTH, seed=seed)
    reference = _logits(model, sample, available, device)
    others = _others(files, available)
    control = Comparison()
    for sequence, a, b in zip(sample.sequences, reference, _logits(model, sample, others, device), strict=True):
        control.add(a, b, sequence)
    rounding = _rounding(model, sample, reference, available, device) if claim.kind == "exact" else 0.0
    del model
    comparison = Comparison()
    for sequence, a, b in zip(
        sample.sequences, reference, _logits(load_model(written, device=device), sample, None, device), strict=True
    ):
        comparison.add(a, b, sequence)
    return Measured(
        reference=_said(available),
        text=sample.origin,
        tokens=sample.tokens,
        max_abs=comparison.max_abs,
        mean_abs=comparison.mean_abs,
        max_logit=comparison.max_logit,
        kl=comparison.kl,
        top1=comparison.top1,
        reference_loss=comparison.reference_loss,
        loss=comparison.loss,
        other_experts=None if others is None else control.max_abs,
        checks=tuple(_checks(claim, comparison, rounding, _same_tokens(tokenizer, load_tokenizer(written), sample))),
    )


def _checks(claim: Claim, comparison: Comparison, rounding: float, same_tokens: bool | None) -> list[Check]:
    finite = comparison.finite
    checks = [Check("finite", finite, float(not finite), 0.0, "Every logit is finite.")]
    if same_tokens is not None:
        meaning = "The tokenizer produces the same tokens as the MoE's."
        checks.append(Check("tokenizer", same_tokens, float(not same_tokens), 0.0, meaning))
    if claim.kind == "exact":
        limit = claim.tolerance * comparison.max_logit + rounding_allowed(rounding, comparison.max_logit)
        meaning = "The logits equal those of the MoE."
        checks.append(Check("logits", comparison.max_abs <= limit, comparison.max_abs, limit, meaning))
    return checks


def _logits(model: Any, sample: Sample, available: Available | None, device: str) -> list[torch.Tensor]:
    """Logits [S, V] of each sequence."""
    with torch.no_grad(), nullcontext() if available is None else only_experts(model, available):
        return [
            model(**plain(sequence, device), use_cache=False).logits[0].float().cpu() for sequence in sample.sequences
        ]


def _rounding(
    model: Any, sample: Sample, reference: Sequence[torch.Tensor], available: Available | None, device: str
) -> float:
    """What another batch shape, padded on either side, changes in the logits of the MoE itself."""
    few, changed = sample.sequences[:2], 0.0
    with torch.no_grad(), nullcontext() if available is None else only_experts(model, available):
        for side in SIDES:
            found = model(**padded(model, few, side, device), use_cache=False).logits.float().cpu()
            pairs = zip(unpadded(found, few, side), reference, strict=False)
            changed = max(changed, *((row - alone).abs().max().item() for row, alone in pairs))
    return changed


def _others(files: MoeFiles, available: Available | None) -> dict[int, tuple[int, ...]] | None:
    """For each layer the same number of unavailable experts, or all of them if there are fewer."""
    if available is None or any(len(experts) >= files.experts for experts in available.values()):
        return None
    found = {}
    for layer, experts in available.items():
        rest = [e for e in range(files.experts) if e not in experts]
        found[layer] = tuple(rest[: len(experts)])
    return found


def _said(available: Available | None) -> str:
    if available is None:
        return "the MoE"
    sets = {tuple(experts) for experts in available.values()}
    if len(sets) > 1:
        return "the MoE restricted to the experts kept"
    experts = sets.pop()
    return f"the MoE restricted to expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))}"


def _same_tokens(one: Any | None, other: Any | None, sample: Sample) -> bool | None:
    if one is None:
        return None
    texts = [one.decode(sequence) for sequence in sample.sequences]
    return other is not None and all(one(text)["input_ids"] == other(text)["input_ids"] for text in texts)


def mean_factors(files: MoeFiles, experts: Sequence[int], device: str, *, seed: int = 0) -> dict[int, Factors]:
    """By layer, the mean gates of these experts and of the shared expert on text.

    For gates that depend on the token; replacing them by a constant is an approximation.
    """
    model = load_model(files.folder, device=device)
    sample = draw_sample(load_tokenizer(files.folder), model.config, None, count=SEQUENCES, length=LENGTH, seed=seed)
    shared: dict[int, list[torch.Tensor]] = {layer: [] for layer in files.layers}
    handles = []
    for layer, found in files.layers.items():
        if found.shared_gate is not None:
            gate = model.get_submodule(found.shared_gate.removesuffix(".weight"))
            handles.append(gate.register_forward_hook(_keep_sigmoid(shared[layer])))
    with RoutingCapture(model) as capture:
        _logits(model, sample, dict.fromkeys(files.layers, tuple(experts)), device)
    for handle in handles:
        handle.remove()
    return {
        layer: Factors(
            routed=files.shared_scale * capture.routing(layer).weights.sum(-1).mean().item(),
            shared=files.shared_scale * (torch.cat(shared[layer]).mean().item() if shared[layer] else 1.0),
        )
        for layer in files.layers
    }


def _keep_sigmoid(into: list[torch.Tensor]) -> Any:
    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        into.append(output.float().sigmoid().flatten())

    return hook


# -- text ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A data file in two halves, alternating documents of each domain: one for selection, one for measurement."""

    choice: HeldOut
    losses: HeldOut


def split_data(files: MoeFiles, data: str | Path) -> Split:
    """Windows of the documents of a file, about 4,096 tokens per domain for selection and 8,192 for measurement.

    Raises:
        DataError: a file that cannot be read, or a domain with a single document.
        SourceError: the model has no tokenizer.
    """
    halves: tuple[list[Document], list[Document]] = ([], [])
    by_domain: dict[str, list[Document]] = {}
    for document in read_documents(data):
        by_domain.setdefault(document.domain or "text", []).append(document)
    for domain, documents in by_domain.items():
        if len(documents) < 2:
            raise DataError(
                "has only one document; at least two are needed, one to select experts and one to measure on.",
                field="domain",
                value=domain,
            )
        for half in (0, 1):
            halves[half].extend(documents[half::2])
    return Split(_windows(files, halves[0], TO_CHOOSE), _windows(files, halves[1], TO_MEASURE))


def read_windows(files: MoeFiles, data: str | Path) -> HeldOut:
    """Windows of the documents of a file, about 4,096 tokens per domain.

    Raises:
        DataError: a file that cannot be read.
        SourceError: the model has no tokenizer.
    """
    return _windows(files, read_documents(data), TO_CHOOSE)


def _windows(files: MoeFiles, documents: Sequence[Document], budget: int) -> HeldOut:
    tokenizer = load_tokenizer(files.folder)
    if tokenizer is None:
        raise SourceError("has no tokenizer, so it cannot read the data.", field="model", value=str(files.folder))
    config = files.config.get("text_config", files.config)
    context = config.get("max_position_embeddings") or config.get("n_positions") or WINDOW + 1
    chosen: list[Document] = []
    characters: dict[str | None, int] = {}
    for document in documents:  # no token is longer than sixteen characters: text beyond that is not needed
        if characters.get(document.domain, 0) <= 16 * budget:
            chosen.append(document)
            characters[document.domain] = characters.get(document.domain, 0) + len(document.text)
    ids = encode_documents(tokenizer, [document.text for document in chosen])
    return cut_windows(
        ids,
        [document.domain or "text" for document in chosen],
        length=min(WINDOW, context - 1),
        start=end_of_text(tokenizer),
        budget=budget,
        per_document=PER_DOCUMENT,
    )


@dataclass(frozen=True)
class Losses:
    """Held-out loss before and after, in nats per token; `interval`: 95% CI of the difference, over documents."""

    before: DocumentLosses
    after: DocumentLosses

    def to_json(self) -> dict[str, Any]:
        delta, low, high = paired_difference(self.after, self.before)
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "delta": delta,
            "interval": [low, high],
            "delta_by_domain": {
                domain: self.after.by_domain[domain] - loss for domain, loss in self.before.by_domain.items()
            },
        }


def losses(folder: Path, held_out: HeldOut, device: str) -> DocumentLosses:
    """The held-out losses of a model, in fp32."""
    return document_losses(load_model(folder, device=device), held_out)


@dataclass(frozen=True)
class Use:
    """How a model's experts are used on some text.

    Attributes:
        gates: MoE layer -> [E], gate weight summed over tokens.
        similarity: MoE layer -> [E, E], cosine of the experts' router logits over tokens.
    """

    gates: dict[int, torch.Tensor]
    similarity: dict[int, torch.Tensor]


@torch.no_grad()
def expert_use(folder: Path, held_out: HeldOut, device: str) -> Use:
    """Run a model over windows of text and count expert use."""
    model = load_model(folder, device=device)
    gates: dict[int, torch.Tensor] = {}
    products: dict[int, torch.Tensor] = {}
    with RoutingCapture(model) as capture:
        for window in held_out.windows:
            model(input_ids=torch.tensor([window[:-1]], device=device), use_cache=False)
            for layer in capture.layers:
                routing = capture.routing(layer)
                logits = routing.logits.cpu().double()
                spread = torch.zeros_like(logits).scatter_(1, routing.indices.cpu(), routing.weights.cpu().double())
                gates[layer] = gates.get(layer, 0) + spread.sum(0)
                products[layer] = products.get(layer, 0) + logits.T @ logits
            capture.clear()
    similarity = {}
    for layer, product in products.items():
        norm = product.diagonal().clamp_min(1e-30).sqrt()
        similarity[layer] = product / norm[:, None] / norm[None, :]
    return Use(gates, similarity)


@torch.no_grad()
def rows_away(files: MoeFiles, device: str, *, seed: int = 0) -> dict[int, torch.Tensor]:
    """By layer, a router row [D] whose logit is nearly constant and far below all others on any text.

    The direction in which the router's inputs vary least about their mean: ridge regression of 1 on the inputs.
    """
    model = load_model(files.folder, device=device)
    tokenizer = load_tokenizer(files.folder)
    sample = draw_sample(tokenizer, model.config, None, count=4 * SEQUENCES, length=LENGTH, seed=seed)
    inputs: dict[int, list[torch.Tensor]] = {layer: [] for layer in files.layers}
    handles = [router.register_forward_pre_hook(_keep_input(inputs[layer])) for layer, router in find_routers(model)]
    with RoutingCapture(model) as capture:
        _logits(model, sample, None, device)
    for handle in handles:
        handle.remove()
    rows = {}
    for layer, seen in inputs.items():
        x_TD = torch.cat(seen).double()
        moments = x_TD.T @ x_TD / len(x_TD)
        ridge = RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
        ones = torch.linalg.solve(moments + ridge, x_TD.mean(0))
        lowest = min(capture.routing(layer).logits.min().item(), 0.0)
        rows[layer] = (ones / (x_TD @ ones).mean() * (lowest - GAP)).float()
    return rows


def _keep_input(into: list[torch.Tensor]) -> Any:
    def hook(module: Any, args: tuple[torch.Tensor, ...]) -> None:
        into.append(args[0].reshape(-1, args[0].shape[-1]).float().cpu())

    return hook
