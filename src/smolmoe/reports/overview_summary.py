"""The answers at the top of the report: the verdict, what was made, what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from smolmoe.core import units
from smolmoe.core.statistics import NO_DIFFERENCE, evidence, side
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.bench_view import bench_answer
from smolmoe.reports.blocks import Answer
from smolmoe.reports.boundary import VERDICTS, Boundary
from smolmoe.reports.comparison_view import rivals
from smolmoe.reports.overview import Bench, Overview, Training
from smolmoe.reports.overview_charts import above
from smolmoe.results.comparison import Comparison


def answers(found: Overview) -> list[Answer]:
    """The three answers of the page, the verdict first."""
    return [_verdict(found), _made(found), _costs(found)]


def _made(found: Overview) -> Answer:
    question = "What was made"
    main = found.main
    if main is None:
        probe = next(iter(found.probes), None)
        if probe is not None:
            probed = probe.after.result.model
            headline = f"{probed.experts} experts, top-{probed.top_k}"
            return Answer(question, headline, f"A probe of a {probed.class_name}.")
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
        "rounded": "It computes what its dense model computes, except for one rounding of weights",
        "deviates": "It deviates from its dense model by design, by a predicted amount",
    }.get(kind)
    if said is None:
        return f"a {model.architecture}."
    if not verification:
        return f"a {model.architecture}. {said}: claimed, but not verified."
    checks = verification.get("checks") or ()
    held = sum(bool(check["passed"]) for check in checks)
    verdict = "verified" if verification.get("passed") else "which does not hold"
    quick = " of the quick verification" if verification.get("mode") == "quick" else ""
    return f"a {model.architecture}. {said}: {verdict}, {held} of {len(checks)} checks{quick} on the files as written."


def _sound(model: ModelFacts) -> str:
    verification = model.provenance.get("verification")
    return "" if not verification else ("good" if verification.get("passed") else "bad")


def _costs(found: Overview) -> Answer:
    question = "What it costs"
    main = found.main
    if main is None:
        return Answer(question, "Not known", "No model's files are here.", "open")
    _, model = main
    total = units.parameters(model.parameters.get("total") or model.total)
    active = model.active
    headline = total if not active or not model.experts else f"{units.parameters(active)} of {total}"
    sentence = (
        "parameters" if not model.experts else "parameters are active per token" if active else "parameters in total"
    )
    if model.experts and active:
        sentence += _against_dense(found, active)
    sentence += f"; {units.size(model.nbytes)} on disk."
    spent = [
        (run.summary["tokens"], run.summary.get("flops") or 0)
        for run in found.trainings
        if run.summary.get("tokens") and found.kin.together(run.folder, model.folder)
    ]
    if spent:
        tokens, flops = max(spent)
        sentence += f" Longest related training here: {units.tokens(tokens)} tokens, {units.flops(flops)}."
    speed = [said for one in found.benches if _is_about(found, model, one) and (said := bench_answer(one.result))]
    return Answer(question, headline, " ".join([sentence, *speed[:1]]))


def _against_dense(found: Overview, active: int) -> str:
    """The size relative to its recorded dense source, or why it is not compared."""
    for other in found.models_it_was_made_of:
        size = other.parameters.get("total") or other.total
        label = next(label for label, known in found.models if known is other)
        return f", {active / size:.2f} times those of {label}, the dense model it was made from"
    others = any(not other.experts for _, other in found.models)
    return "; no dense model here is its recorded source, so none is compared" if others else ""


def _is_about(found: Overview, model: ModelFacts, bench: Bench) -> bool:
    return any(found.kin.together(folder, model.folder) for folder in bench.folders) or len(found.moes) == 0


def _verdict(found: Overview) -> Answer:
    question = "Verdict"
    main = found.main
    for _, comparison in found.comparisons:
        if comparison.verdict and (main is None or comparison.hashes & found.kin.of(main[1].folder)):
            headline, tone = _who(comparison)
            return Answer(question, headline, comparison.verdict[0], tone)
    for boundary in found.boundaries:
        if boundary.differences and (main is None or _is_across(found, boundary, main[1])):
            return _of_boundary(question, boundary)
    for group in found.groups:
        done = [run for run in group if run.documents is not None and run.summary.get("held_out")]
        if len(done) > 1 and (main is None or any(found.kin.together(run.folder, main[1].folder) for run in done)):
            return _of_runs(question, done)
    others = "The comparisons below are of other models. " if found.comparisons or found.boundaries else ""
    return Answer(
        question,
        "Not compared with a dense model",
        f"{others}Nothing here compares this model with a related one (a recorded common ancestor) on the same "
        "held-out text. Use `smolmoe compare`.",
        "open",
    )


def _is_across(found: Overview, boundary: Boundary, model: ModelFacts) -> bool:
    """Whether the runs of a boundary are related to the model; without a record, by their folder."""
    if boundary.runs:
        return any(found.kin.together(run, model.folder) for run in boundary.runs)
    return model.folder.resolve().is_relative_to(boundary.folder.resolve())


def _who(found: Comparison) -> tuple[str, str]:
    """Whether an MoE or a dense model wins."""
    kinds = {model.name: model.kind for model in found.models}
    won = {kinds[pair.better] if pair.better else None for pair in rivals(found)}
    if not won:
        return "Compared", ""
    if len(won) > 1:
        return "It depends", "open"
    return {"moe": ("The MoE is better", "good"), "dense": ("The dense model is better", "bad")}.get(
        won.pop() or "", ("No difference beyond chance", "open")
    )


def _of_boundary(question: str, boundary: Boundary) -> Answer:
    """The first compared run, with a sentence on each of the others."""
    (label, gap), *others = boundary.differences
    reference = boundary.reference or "the reference"
    found = side(gap, boundary.documents)
    headline, tone = {
        "few": (f"Too few documents to compare {label} with {reference}", "open"),
        "none": (f"No difference beyond chance between {label} and {reference}", "open"),
        "lower": (f"{label} is better than {reference}", "good"),
        "higher": (f"{label} is worse than {reference}", "bad"),
    }[found]
    rest = [f"{name} is {VERDICTS[side(other, boundary.documents)]}" for name, other in others]
    rest = [words.replace(f"is {NO_DIFFERENCE}", f"shows {NO_DIFFERENCE.removesuffix(' seen')}") for words in rest]
    also = f" Compared with {reference} too: {'; '.join(rest)}." if rest else ""
    return Answer(
        question,
        headline,
        f"Held-out loss{_budget(boundary, label)}: {evidence(gap, boundary.documents)}, one seed.{also}",
        tone,
    )


def _budget(boundary: Boundary, label: str) -> str:
    """The training of a run compared with the reference's."""
    row, other = boundary.rows[label], boundary.rows.get(boundary.reference or "", {})
    said = ""
    if row.get("tokens") and other.get("tokens"):
        same = row["tokens"] == other["tokens"]
        each = "each" if same else f"and {units.tokens(other['tokens'])}"
        said = f" after {units.tokens(row['tokens'])} more training tokens {each}"
    if row.get("flops") and other.get("flops"):
        said += f", at {row['flops'] / other['flops']:.2f} times the FLOPs"
    return said


def _of_runs(question: str, runs: Sequence[Training]) -> Answer:
    """The lowest final loss of comparable runs compared with the next, whatever their models and budgets."""
    best, second = sorted(runs, key=lambda run: run.summary["held_out"]["loss"])[:2]
    gap = above(second, "all", (best, second))
    if gap is None or best.documents is None:
        return Answer(question, "Not compared", "The runs were not compared.", "open")
    documents = len(best.documents.tokens)
    found = side(gap, documents)
    headline = {
        "few": f"Too few documents to compare {best.label} with {second.label}",
        "none": f"No difference beyond chance between {best.label} and {second.label}",
    }.get(found, f"{best.label} ends below {second.label}")
    budgets = " and ".join(units.tokens(tokens) for run in (best, second) if (tokens := run.summary.get("tokens")))
    trained = f" after {budgets} training tokens" if budgets else ""
    return Answer(
        question,
        headline,
        f"Held-out losses of the two lowest of {len(runs)} runs with a common ancestor{trained}, {second.label} minus "
        f"{best.label}: {evidence(gap, documents)}, one seed each.",
        "open" if found in ("few", "none") else "",
    )
