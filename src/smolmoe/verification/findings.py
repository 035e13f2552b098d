"""The texts of all findings of the doctor, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        code: its short name, e.g. "zero-router".
        layers: MoE layers concerned; empty for the whole model.
        message: what was measured.
        meaning: why it matters.
        remedy: what to do.
    """

    code: str
    severity: Severity
    layers: tuple[int, ...]
    message: str
    meaning: str
    remedy: str

    def __str__(self) -> str:
        word = "note" if self.severity == "info" else "warning"
        layers = f" (layers {', '.join(map(str, self.layers))})" if self.layers else ""
        return f"{word}: {self.message}{layers} {self.meaning} {self.remedy} [{self.code}]"


def finding(code: str, layers: tuple[int, ...] = (), *, ratio: float | None = None, **numbers: object) -> Finding:
    """The finding of this code, its message filled with the numbers measured.

    Args:
        ratio: of a router's gradient to its experts'; None if known to be zero without a measurement.
    """
    severity, message, meaning, remedy = _WORDS[code]
    said = "zero" if ratio is None else f"{ratio:.0e} of the experts'"
    return Finding(code, severity, layers, message.format(ratio=said, **numbers), meaning, remedy)


# code: severity, message, meaning, remedy
_WORDS: dict[str, tuple[Severity, str, str, str]] = {
    "not-finite": (
        "error",
        "Not finite: {names}.",
        "A single NaN or infinity spreads to every weight at the first step.",
        "Go back to the last good checkpoint, or convert again from a finite source.",
    ),
    "zero-router": (
        "error",
        "The router gives all experts the same score, and they are copies: {top_k} of {experts} get every token.",
        "The router's gradient is zero as long as the experts are equal, and the others never get a token from which "
        "to become different: they stay dead permanently.",
        "Initialise the router at random (router: random) or from domains, or make the experts differ "
        "(diversify: noise or drop).",
    ),
    "same-experts": (
        "error",
        "The router gives all experts the same score, they are copies, and every token goes to all {experts}.",
        "All experts get the same gradient, so they stay equal permanently and the router's gradient stays zero.",
        "Make the experts differ (diversify: noise or drop), or initialise the router at random.",
    ),
    "tied-router": (
        "warning",
        "The router gives all experts the same score: {top_k} of {experts} get every token.",
        "Only their order decides until training moves the router; until then the others do not learn.",
        "Initialise the router at random (router: random) or from domains.",
    ),
    "ties": (
        "warning",
        "For up to {share:.1%} of tokens a chosen and an unchosen expert score exactly the same.",
        "Their order decides, and it differs between kernels; with shards, a token gets parts of two groups.",
        "Compute the router in float32, or give tied experts different router rows. With granularity, top-k must be a "
        "multiple of it.",
    ),
    "top-1": (
        "error",
        "One expert per token and a gate that is always the same (renormalised): the router's gradient is {ratio}.",
        "The router gets no signal from the language-model loss, so it never learns.",
        "Use a top-k of 2 or more, gates that are not renormalised, or a separate router loss (in training here "
        "objective.load_balance or guidance, elsewhere the auxiliary loss with output_router_logits=true).",
    ),
    "top-1-balanced": (
        "info",
        "One expert per token and a gate that is always the same (renormalised): the router's gradient is {ratio}.",
        "The router gets no signal from the language-model loss; only the auxiliary loss moves it, towards balance.",
        "Use a top-k of 2 or more, or gates that are not renormalised, if the router should learn.",
    ),
    "router-gradient": (
        "error",
        "The language-model loss gives the router no gradient ({ratio}), although the experts differ.",
        "The router never learns which expert suits a token: its gates are detached from the loss or do not enter it.",
        "Look for a detach or no_grad around the router or its gates, and for gates that are rounded or replaced.",
    ),
    "silent-experts": (
        "info",
        "Routed experts output zero (a projection is all zeros), so the router's gradient is zero at this step.",
        "Intended for a residual start: the zero projections get gradients now, the rest from the next step.",
        "Nothing to do. If this is a trained model, its routed experts have never been trained.",
    ),
    "copies": (
        "info",
        "The experts are bit-identical copies; the router's gradient is {ratio}, which is rounding noise.",
        "Normal after upcycling. Different tokens reach them, so they diverge at the first step, and from then on the "
        "router learns.",
        "Nothing to do; experts that differ from the start (diversify) let the router learn at once.",
    ),
    "scaled-copies": (
        "info",
        "The experts are bit-identical copies with gates of no constant sum; the router's gradient is {ratio}.",
        "Normal after upcycling with independent gates. The router learns how much an expert counts from the first "
        "step, and which one suits a token as they diverge.",
        "Nothing to do; if every token goes to the same experts, draw the choice for the first steps (routing.sample).",
    ),
    "shards": (
        "info",
        "The experts are {distinct} shards, repeated, and chosen in whole groups by a shared router row.",
        "A whole group is the dense FFN. Plain training gives the rows of a group different gradients, and then "
        "tokens get parts of several groups.",
        "Keep the rows of a group tied (averaged gradients) for the first steps, or freeze the router for them.",
    ),
    "some-copies": (
        "info",
        "Some experts are bit-identical (layer {layer}: {distinct} different ones of {experts}).",
        "The router cannot distinguish copies until they diverge; in a trained model, copies never got a token.",
        "After training: look at the load, and train with load balancing.",
    ),
    "unreached": (
        "warning",
        "No token of {tokens} reaches {which}; balanced, each would get about {expected:.0f}.",
        "An expert without tokens gets no gradient. It uses memory and contributes nothing.",
        "Train with load balancing (auxiliary loss or selection bias), or examine more or different text (`data`).",
    ),
    "small-sample": (
        "info",
        "No token of {tokens} reaches {which}.",
        "The sample is too small to tell whether they are dead.",
        "Examine more text (`data`).",
    ),
    "unread-routers": (
        "warning",
        "transformers records no decisions of these layers' routers ({names}).",
        "They are excluded from all router findings and measurements here.",
        "Nothing to do if they choose by a fixed table, as DeepSeek-V4's first layers do.",
    ),
    "no-aux-loss": (
        "info",
        "The class has no built-in load-balancing loss.",
        "Nothing keeps its experts evenly loaded unless the trainer does.",
        "Train with an external load-balancing loss, or with a selection bias if the class has one.",
    ),
    "aux-off": (
        "info",
        "The class's load-balancing loss works, but the config disables it (output_router_logits is false).",
        "Plain training with this config does not balance the load.",
        "Set output_router_logits=true for training, or use a trainer that adds its own loss.",
    ),
    "aux-detached": (
        "error",
        "The class's load-balancing loss gives the router no gradient.",
        "It is computed and reported but has no effect: loads drift as without it.",
        "Look for a detach around the router's logits; under gradient checkpointing set use_reentrant=False.",
    ),
    "causality": (
        "error",
        "Changing later tokens changes earlier logits by up to {value:.2g} (rounding: below {limit:.1g}).",
        "The model sees the future: its training loss is meaningless, and it cannot generate.",
        "Check the attention mask, and that no router decides over several tokens at once.",
    ),
    "padding": (
        "error",
        "Padding changes the logits of real tokens by up to {value:.2g} (rounding: below {limit:.1g}).",
        "The output for a prompt depends on its neighbours in the batch.",
        "Check that the attention mask reaches the attention, and that padding does not use expert capacity.",
    ),
}
