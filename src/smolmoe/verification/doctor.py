"""Find what would make an MoE train or run badly, before a long run does: each finding with its meaning and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import computed_field

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.claim import read_claim
from smolmoe.core.devices import pick_device
from smolmoe.core.statistics import enough_tokens, least_share
from smolmoe.moe.loading import Skeleton, load_model, load_tokenizer
from smolmoe.moe.routing import RoutingCapture, unread_routers
from smolmoe.results.base import Result
from smolmoe.verification.checks import SELF_TOLERANCE
from smolmoe.verification.diagnostics import LayerVitals, Vitals, take_vitals
from smolmoe.verification.findings import SEVERITIES, Finding, Severity, finding
from smolmoe.verification.routers import constant_router, fixed_gates
from smolmoe.verification.sample import draw_sample

__all__ = ["Diagnosis", "Finding", "Severity", "diagnose", "doctor"]

# If a router's gradient is zero in exact arithmetic, fp32 leaves about this share of the experts' gradient.
GRADIENT_NOISE = 1e-6
# A few equal scores are normal with weights of 16 bits.
TIES = 0.01


class Diagnosis(Result):
    """All findings, the worst first, and the measurements behind them."""

    kind: Literal["doctor"] = "doctor"
    model: str
    text: str
    findings: tuple[Finding, ...]
    vitals: Vitals

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst(self) -> Severity | None:
        """The worst severity; None without a finding."""
        return self.findings[0].severity if self.findings else None


def doctor(
    moe: str | Path,
    *,
    data: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    sequences: int = 8,
    length: int = 128,
) -> Diagnosis:
    """Examine any MoE checkpoint that transformers or our generic class can load.

    The model is loaded whole and in fp32, for its gradients.

    Args:
        moe: checkpoint folder.
        data: documents to examine it on; default text from this Python installation.
        sequences, length: how many token sequences, and the longest.

    Raises:
        SourceError: the folder holds no model, or a dense one.
        CheckpointError: files missing or corrupt, or tensors that do not fit the config.
        DataError: `data` is not text.
    """
    device = pick_device(device)
    folder = open_checkpoint(moe, field="moe").folder
    skeleton = Skeleton(folder)
    RoutingCapture(skeleton.model)  # raises for a dense model before the weights are read
    broken = [f"{name} ({said})" for name, said in skeleton.not_finite().items()]
    model = load_model(folder, device=device, finite=False)
    sample = draw_sample(load_tokenizer(folder), model.config, data, count=sequences, length=length, seed=seed)
    vitals = take_vitals(model, sample.sequences, device)
    if broken:  # instead of parameter names: the files, and the extent
        rest = [name for name in vitals.not_finite if name in ("logits", "gradients")]
        vitals = replace(vitals, not_finite=(*broken, *rest))
    findings = (*diagnose(vitals, read_claim(folder).granularity), *_not_read(model))
    return Diagnosis(model=str(folder), text=sample.origin, findings=_by_severity(findings), vitals=vitals)


def diagnose(vitals: Vitals, granularity: int = 1) -> tuple[Finding, ...]:
    """The findings from the measurements, the worst first.

    Args:
        granularity: G experts that share a router row are shards of one FFN, not copies of each other.
    """
    if vitals.not_finite:
        return (finding("not-finite", names=", ".join(vitals.not_finite[:8])),)
    by_code: dict[str, list[LayerVitals]] = {}
    for layer in vitals.layers:
        for code in _codes(layer, vitals, granularity):
            by_code.setdefault(code, []).append(layer)
    findings = [_about_layers(code, layers, vitals.tokens) for code, layers in by_code.items()]
    findings += [*_aux(vitals), *_leaks(vitals)]
    return _by_severity(findings)


def _not_read(model: Any) -> tuple[Finding, ...]:
    """A finding for layers whose routers cannot be read although others can."""
    left_out = unread_routers(model)
    names = ", ".join(sorted({*left_out.values()}))
    return (finding("unread-routers", tuple(left_out), names=names),) if left_out else ()


def _by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda found: SEVERITIES.index(found.severity)))


def _codes(layer: LayerVitals, vitals: Vitals, granularity: int) -> list[str]:
    """The codes of the findings of one layer."""
    copies = layer.distinct is not None and layer.distinct <= granularity < layer.experts
    taught = layer.router_gradient > GRADIENT_NOISE * layer.expert_gradient
    learns = taught and granularity == 1  # parts of groups give a gradient, too
    if (same_scores := constant_router(layer.experts, layer.top_k, layer.constant, copies and not learns)) is not None:
        return [same_scores]
    codes = []
    if least_share(layer.tied, vitals.tokens) > TIES:
        codes.append("ties")
    balanced = bool(vitals.aux_in_config and layer.aux_gradient)
    if (without_signal := fixed_gates(layer.top_k, layer.fixed_gates, balanced)) is not None:
        codes.append(without_signal)
    elif layer.silent:
        codes.append("silent-experts")
    elif not copies and not taught:
        codes.append("router-gradient")
    if copies:
        codes.append(("scaled-copies" if taught else "copies") if granularity == 1 else "shards")
    elif layer.distinct is not None and layer.distinct < layer.experts:
        codes.append("some-copies")
    if layer.unreached:
        enough = enough_tokens(vitals.tokens, layer.top_k, layer.experts)
        codes.append("unreached" if enough else "small-sample")
    return codes


def _about_layers(code: str, layers: list[LayerVitals], tokens: int) -> Finding:
    first = layers[0]
    return finding(
        code,
        tuple(layer.layer for layer in layers),
        layer=first.layer,
        experts=first.experts,
        top_k=first.top_k,
        distinct=first.distinct,
        ratio=max(layer.router_gradient / max(layer.expert_gradient, 1e-30) for layer in layers),
        share=max(layer.tied for layer in layers),
        tokens=tokens,
        which=_unreached(layers),
        expected=_expected_tokens(first, tokens),
    )


def _aux(vitals: Vitals) -> list[Finding]:
    if not vitals.has_aux_loss:
        return [finding("no-aux-loss")]
    detached = tuple(layer.layer for layer in vitals.layers if not layer.aux_gradient)
    if detached:
        return [finding("aux-detached", detached)]
    return [] if vitals.aux_in_config else [finding("aux-off")]


def _leaks(vitals: Vitals) -> list[Finding]:
    limit = SELF_TOLERANCE * vitals.max_logit
    measured = {"causality": vitals.causal, "padding": vitals.padding}
    return [finding(code, value=value, limit=limit) for code, value in measured.items() if value > limit]


def _expected_tokens(layer: LayerVitals, tokens: int) -> float:
    return tokens * layer.top_k / layer.experts


def _unreached(layers: list[LayerVitals], most: int = 3) -> str:
    """E.g. "experts 2, 5 of layer 0; expert 1 of layer 3"."""
    named = [
        f"expert{'s' if len(layer.unreached) > 1 else ''} {', '.join(map(str, layer.unreached))} of layer {layer.layer}"
        for layer in layers
    ]
    return "; ".join(named[:most]) + (f" and others in {len(named) - most} more layers" if len(named) > most else "")
