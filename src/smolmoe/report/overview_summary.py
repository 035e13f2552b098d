"""What a colleague takes from the report in ten seconds: what was made, what it costs, whether it wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smolmoe.report.bench_view import bench_answer
from smolmoe.report.model_facts import ModelFacts
from smolmoe.report.overview import Boundary, Overview


@dataclass(frozen=True)
class Answer:
    """One of the three answers.

    Attributes:
        question: what it answers.
        headline: a few words, large.
        sentence: the rest.
        tone: "good", "bad", "open" (not told apart, not measured) or "".
    """

    question: str
    headline: str
    sentence: str
    tone: str = ""


def answers(found: Overview) -> list[Answer]:
    """What was made, what it costs, whether it wins."""
    return [_made(found), _costs(found), _wins(found)]


def main_model(found: Overview) -> tuple[str, ModelFacts] | None:
    """The MoE that the report is about: the first one that was converted, else the first."""
    moes = found.moes
    converted = [pair for pair in moes if pair[1].stage == "upcycle"]
    return next(iter(converted or moes or found.models), None)


def _made(found: Overview) -> Answer:
    question = "What was made?"
    main = main_model(found)
    if main is None:
        probe = next(iter(found.probes), None)
        if probe is not None:
            model = probe.after.values["model"]
            headline = f"{model['experts']} experts, top-{model['top_k']}"
            return Answer(question, headline, f"A probe of a {model.get('class_name', 'model')}.")
        return Answer(question, "No model here", "None of these folders holds a model.", "open")
    label, model = main
    if not model.experts:
        return Answer(question, "A dense model", f"{label}: {model.architecture}.")
    return Answer(question, f"{model.experts} experts, top-{model.top_k}", f"{label}: {_which(model)}", _sound(model))


def _which(model: ModelFacts) -> str:
    kind = str((model.provenance.get("claim") or {}).get("kind", "none"))
    verification = model.provenance.get("verification")
    said = {
        "exact": "It computes what its dense model computes",
        "rounded": "It computes what its dense model computes but for one rounding of weights",
        "deviates": "It is another function than its dense model's by design, by a predicted amount",
    }.get(kind)
    if said is None:
        return f"a {model.architecture}."
    if not verification:
        return f"a {model.architecture}. {said}: claimed, but not verified."
    checks = verification.get("checks") or ()
    held = sum(bool(check["passed"]) for check in checks)
    verdict = "verified" if verification.get("passed") else "which does not hold"
    return f"a {model.architecture}. {said}: {verdict}, {held} of {len(checks)} checks on the files as written."


def _sound(model: ModelFacts) -> str:
    verification = model.provenance.get("verification")
    return "" if not verification else ("good" if verification.get("passed") else "bad")


def _costs(found: Overview) -> Answer:
    question = "What does it cost?"
    main = main_model(found)
    if main is None:
        return Answer(question, "Not known", "No model's files are here.", "open")
    _, model = main
    total = _millions(model.parameters.get("total") or model.total)
    active = model.active
    headline = total if not active or not model.experts else f"{_millions(active)} of {total}"
    sentence = (
        "parameters" if not model.experts else "parameters are used for a token" if active else "parameters in all"
    )
    dense = _dense_parameters(found)
    if dense and active and model.experts:
        sentence += f", {active / dense:.2f} times the dense model's {_millions(dense)}"
    sentence += f"; {model.nbytes / 1e6:,.1f} MB on disk."
    spent = [
        (run.summary["tokens"], run.summary.get("flops") or 0) for run in found.trainings if run.summary.get("tokens")
    ]
    if spent:
        tokens, flops = max(spent)
        sentence += f" Longest training here: {tokens:,} tokens, {flops:.2g} FLOPs."
    speed = [said for values in found.benches if (said := bench_answer(values))]
    return Answer(question, headline, " ".join([sentence, *speed[:1]]))


def _dense_parameters(found: Overview) -> int | None:
    return next((model.parameters.get("total") or model.total for _, model in found.models if not model.experts), None)


def _wins(found: Overview) -> Answer:
    question = "Does it win?"
    for comparison in found.comparisons:
        if comparison.verdict:
            headline, tone = _who(comparison.values)
            return Answer(question, headline, comparison.verdict[0], tone)
    for boundary in found.boundaries:
        if boundary.reference:
            return _of_boundary(question, boundary)
    return Answer(
        question,
        "Not measured",
        "Nothing here lays the MoE beside a dense model on the same held-out text: `smolmoe compare` does.",
        "open",
    )


def _who(values: Mapping[str, Any]) -> tuple[str, str]:
    """Of the pairs of an MoE and a dense model, the base left out where another dense one was continued."""
    kinds = {model["name"]: model["kind"] for model in values.get("models") or ()}
    pairs = [
        p for p in values.get("pairs") or () if {kinds.get(p["first"]), kinds.get(p["second"])} == {"moe", "dense"}
    ]
    rivals = [p for p in pairs if values.get("base") not in (p["first"], p["second"])] or pairs
    won = {kinds.get(pair["better"]) if pair["better"] else None for pair in rivals}
    if not won:
        return "Compared", ""
    if len(won) > 1:
        return "It depends", "open"
    winner = won.pop()
    return {"moe": ("Yes", "good"), "dense": ("No", "bad")}.get(winner or "", ("No difference", "open"))


def _of_boundary(question: str, boundary: Boundary) -> Answer:
    label, row = next((pair for pair in boundary.rows.items() if pair[1].get("difference")), ("", {}))
    difference = row.get("difference")
    if not difference:
        return Answer(question, "Not measured", "The runs were not compared.", "open")
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    if low <= 0 <= high:
        headline, tone, verdict = "No difference", "open", "is not told apart from"
    elif high < 0:
        headline, tone, verdict = "On equal tokens, yes", "good", "is better than"
    else:
        headline, tone, verdict = "Not on equal tokens", "bad", "is worse than"
    return Answer(
        question,
        headline,
        f"{label} {verdict} “{boundary.reference}” on held-out text after as many further tokens: "
        f"{value:+.4f} [{low:+.4f}, {high:+.4f}] nats a "
        f"token (95% over {boundary.documents:,} documents, one seed){_beside(boundary, label)}.",
        tone,
    )


def _beside(boundary: Boundary, label: str) -> str:
    """What the win has cost, and whether another run ends lower still."""
    rows, reference = boundary.rows, boundary.rows.get(boundary.reference or "", {})
    flops, other = rows[label].get("flops"), reference.get("flops")
    said = f", at {flops / other:.2f} times its FLOPs" if flops and other else ""
    ends = {name: row["final"] for name, row in rows.items() if row.get("final") is not None}
    best = min(ends, key=lambda name: ends[name])
    return said + (f"; the lowest loss is that of “{best}”, {ends[best]:.4f}" if best != label else "")


def _millions(count: float) -> str:
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return str(int(count))
