"""Find what would make an MoE train or run badly, before a long run does: each finding with its meaning and remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from smolmoe.checkpoint import open_checkpoint
from smolmoe.moe.loading import Skeleton, load_model, load_tokenizer
from smolmoe.moe.routing import RoutingCapture
from smolmoe.proof.checks import SELF_TOLERANCE
from smolmoe.proof.claim import as_json, read_claim
from smolmoe.proof.sample import draw_sample
from smolmoe.proof.vitals import LayerVitals, Vitals, take_vitals

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
# fp32 cancels to about this share of the experts' gradient where a router's gradient is zero in exact arithmetic.
GRADIENT_NOISE = 1e-6
# An expert that should have got this many tokens and got none is not a matter of chance.
ENOUGH_TOKENS = 16
# A few equal scores happen in 16-bit weights.
TIES = 0.01


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        code: its short name, e.g. "zero-router".
        layers: MoE layers concerned; empty for the whole model.
        message: what was measured. meaning: why it matters. remedy: what to do.
    """

    code: str
    severity: Severity
    layers: tuple[int, ...]
    message: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first, and the numbers behind them."""

    model: str
    text: str
    findings: tuple[Finding, ...]
    vitals: Vitals

    @property
    def worst(self) -> Severity | None:
        """The worst severity, None where nothing was found."""
        return self.findings[0].severity if self.findings else None

    def to_json(self) -> dict[str, Any]:
        return as_json({"worst": self.worst, **asdict(self)})


def doctor(
    moe: str | Path,
    *,
    data: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    sequences: int = 8,
    length: int = 128,
) -> Diagnosis:
    """Examine any MoE checkpoint that transformers (or our generic class) can load.

    The model is loaded whole, in fp32, for its gradients.

    Args:
        moe: checkpoint folder.
        data: documents to examine it on; default text from this Python installation.
        sequences, length: how many token sequences, and the longest.

    Raises:
        SourceError: the folder holds no model, or a dense one.
        CheckpointError: files missing or corrupt, or tensors that do not fit the config.
        DataError: `data` is no text.
    """
    folder = open_checkpoint(moe, field="moe").folder
    RoutingCapture(Skeleton(folder).model)  # refuses what is no MoE, before its weights are read
    model = load_model(folder, device=device)
    sample = draw_sample(load_tokenizer(folder), model.config, data, count=sequences, length=length, seed=seed)
    vitals = take_vitals(model, sample.sequences, device)
    findings = diagnose(vitals, read_claim(folder).granularity)
    return Diagnosis(str(folder), sample.origin, findings, vitals)


def diagnose(vitals: Vitals, granularity: int = 1) -> tuple[Finding, ...]:
    """The findings that the measurements amount to, the worst first.

    Args:
        granularity: G experts that share a router row are shards of one FFN, not copies of each other.
    """
    if vitals.not_finite:
        return (_not_finite(vitals),)
    by_code: dict[str, list[LayerVitals]] = {}
    for layer in vitals.layers:
        for code in _codes(layer, vitals, granularity):
            by_code.setdefault(code, []).append(layer)
    findings = [_DESCRIBE[code](layers, vitals) for code, layers in by_code.items()]
    findings += [*_aux(vitals), *_leaks(vitals)]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _codes(layer: LayerVitals, vitals: Vitals, granularity: int) -> list[str]:
    """What one layer suffers from."""
    copies = layer.distinct is not None and layer.distinct <= granularity < layer.experts
    if layer.constant and layer.experts > layer.top_k:
        return ["zero-router" if copies else "tied-router"]
    codes = []
    if layer.tied > TIES:
        codes.append("ties")
    if layer.top_k == 1 and layer.fixed_gates:
        codes.append("top-1")
    elif layer.silent:
        codes.append("silent-experts")
    elif not copies and layer.router_gradient <= GRADIENT_NOISE * layer.expert_gradient:
        codes.append("router-gradient")
    if copies:
        codes.append("copies")
    elif layer.distinct is not None and layer.distinct < layer.experts:
        codes.append("some-copies")
    if layer.unreached:
        enough = vitals.tokens * layer.top_k / layer.experts >= ENOUGH_TOKENS
        codes.append("unreached" if enough else "small-sample")
    return codes


def _zero_router(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    one = layers[0]
    return Finding(
        "zero-router",
        "error",
        _numbers(layers),
        f"The router gives all experts the same score and the experts are copies: {one.top_k} of {one.experts} get "
        "every token.",
        "The router's gradient is zero as long as the experts are equal, and the others never get a token to become "
        "different by: they stay dead for good.",
        "Initialise the router at random (--router random) or from domains, or make the experts differ "
        "(--diversify noise or drop).",
    )


def _tied_router(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    one = layers[0]
    return Finding(
        "tied-router",
        "warning",
        _numbers(layers),
        f"The router gives all experts the same score: {one.top_k} of {one.experts} get every token.",
        "Only their order decides until training moves the router; the others get nothing to learn from meanwhile.",
        "Initialise the router at random (--router random) or from domains.",
    )


def _ties(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    share = max(layer.tied for layer in layers)
    return Finding(
        "ties",
        "warning",
        _numbers(layers),
        f"For up to {share:.1%} of tokens a chosen and an unchosen expert score exactly the same.",
        "Their order in memory decides, which differs between kernels; with shards, a token gets parts of two groups.",
        "Compute the router in float32, or give tied experts different router rows. With granularity, top-k must be a "
        "multiple of it.",
    )


def _top_1(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    has_signal = vitals.aux_in_config and all(layer.aux_gradient for layer in layers)
    return Finding(
        "top-1",
        "info" if has_signal else "error",
        _numbers(layers),
        "One expert per token with renormalised gates: the gate is always the same, "
        f"the router's gradient is {_worst_ratio(layers):.0e} of the experts'.",
        "The language-model loss cannot tell the router anything"
        + ("; here only the auxiliary loss moves it." if has_signal else ", so it never learns."),
        "Use top-k of 2 or more, gates that are not renormalised, or give the router a signal of its own (auxiliary "
        "loss with output_router_logits=true, or domain guidance).",
    )


def _silent(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    return Finding(
        "silent-experts",
        "info",
        _numbers(layers),
        "Routed experts give zero (a projection is all zeros), so the router's gradient is zero at this step.",
        "As meant for a residual start: the zero projections get gradients now, router and the rest from the next step.",
        "Nothing to do. If this is a trained model, its routed experts have never been trained.",
    )


def _router_gradient(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    return Finding(
        "router-gradient",
        "error",
        _numbers(layers),
        f"The language-model loss gives the router no gradient ({_worst_ratio(layers):.0e} of the experts'), although "
        "the experts differ.",
        "The router never learns which expert suits a token: it is detached from the loss, or its gates do not enter it.",
        "Look for a detach or no_grad around the router or its gates, and for gates that are rounded or replaced.",
    )


def _copies(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    return Finding(
        "copies",
        "info",
        _numbers(layers),
        f"The experts are bit-identical copies; the router's gradient is {_worst_ratio(layers):.0e} of theirs, which "
        "is rounding.",
        "As upcycling writes them. Different tokens reach them, so they part at the first step, and from then on the "
        "router learns.",
        "Nothing to do; experts that differ from the start (--diversify) let the router learn at once.",
    )


def _some_copies(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    fewest = min(layers, key=lambda layer: layer.distinct or 0)
    return Finding(
        "some-copies",
        "info",
        _numbers(layers),
        f"Some experts are bit-identical (layer {fewest.layer}: {fewest.distinct} of {fewest.experts} differ).",
        "Between copies the router has nothing to learn until they part; in a trained model, copies never got a token.",
        "After training: look at the load, and train with load balancing.",
    )


def _unreached(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    expected = vitals.tokens * layers[0].top_k / layers[0].experts
    return Finding(
        "unreached",
        "warning",
        _numbers(layers),
        f"No token of {vitals.tokens} reaches {_experts_of(layers)}; balanced, each would get about {expected:.0f}.",
        "An expert without tokens gets no gradient. It costs memory and gives nothing.",
        "Train with load balancing (auxiliary loss or selection bias), or examine it on more and other text (--data).",
    )


def _small_sample(layers: list[LayerVitals], vitals: Vitals) -> Finding:
    return Finding(
        "small-sample",
        "info",
        _numbers(layers),
        f"No token of {vitals.tokens} reaches {_experts_of(layers)}.",
        "The sample is too small to tell whether they are dead.",
        "Examine it on more text.",
    )


def _aux(vitals: Vitals) -> list[Finding]:
    if not vitals.has_aux_loss:
        return [
            Finding(
                "no-aux-loss",
                "info",
                (),
                "The class computes no load-balancing loss of its own.",
                "Nothing keeps its experts evenly loaded unless the trainer does.",
                "Train with a load-balancing loss from outside, or with a selection bias where the class has one.",
            )
        ]
    detached = [layer for layer in vitals.layers if not layer.aux_gradient]
    if detached:
        return [
            Finding(
                "aux-detached",
                "error" if vitals.aux_in_config else "warning",
                _numbers(detached),
                "The auxiliary loss gives the router no gradient.",
                "It is computed, reported and without effect: loads drift as if there were none.",
                "Look for a detach around the router's logits; under gradient checkpointing set use_reentrant=False.",
            )
        ]
    if vitals.aux_in_config:
        return []
    return [
        Finding(
            "aux-off",
            "info",
            (),
            "The auxiliary loss works, but the config leaves it out (output_router_logits is false).",
            "Plain training with this config balances nothing.",
            "Set output_router_logits=true for training, or use a trainer that adds its own loss.",
        )
    ]


def _leaks(vitals: Vitals) -> list[Finding]:
    findings = []
    limit = SELF_TOLERANCE * vitals.max_logit
    if not vitals.causal <= limit:
        findings.append(
            Finding(
                "causality",
                "error",
                (),
                f"Changing later tokens changes earlier logits by up to {vitals.causal:.2g} (rounding: {limit:.1g}).",
                "The model sees the future: its training loss is worth nothing, and it cannot generate.",
                "Check the attention mask, and that no router decides over several tokens at once.",
            )
        )
    if not vitals.padding <= limit:
        findings.append(
            Finding(
                "padding",
                "error",
                (),
                f"Padding changes the logits of real tokens by up to {vitals.padding:.2g} (rounding: {limit:.1g}).",
                "What a prompt gives depends on its neighbours in the batch.",
                "Check that the attention mask reaches the attention, and that padding takes no expert's capacity.",
            )
        )
    return findings


def _numbers(layers: list[LayerVitals]) -> tuple[int, ...]:
    return tuple(layer.layer for layer in layers)


def _worst_ratio(layers: list[LayerVitals]) -> float:
    return max(layer.router_gradient / max(layer.expert_gradient, 1e-30) for layer in layers)


def _experts_of(layers: list[LayerVitals], most: int = 4) -> str:
    shown = [f"layer {layer.layer}'s expert {', '.join(map(str, layer.unreached))}" for layer in layers[:most]]
    return "; ".join(shown) + (f" and others in {len(layers) - most} more layers" if len(layers) > most else "")


_DESCRIBE: dict[str, Callable[[list[LayerVitals], Vitals], Finding]] = {
    "zero-router": _zero_router,
    "tied-router": _tied_router,
    "ties": _ties,
    "top-1": _top_1,
    "silent-experts": _silent,
    "router-gradient": _router_gradient,
    "copies": _copies,
    "some-copies": _some_copies,
    "unreached": _unreached,
    "small-sample": _small_sample,
}


def _not_finite(vitals: Vitals) -> Finding:
    return Finding(
        "not-finite",
        "error",
        (),
        f"Not finite: {', '.join(vitals.not_finite[:8])}.",
        "A single NaN or infinity spreads to every weight at the first step.",
        "Go back to the last good checkpoint, or convert again from a finite source.",
    )
