"""What a pipeline shows of its models, in sentences and small tables with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smolmoe.core import units
from smolmoe.core.statistics import Interval, evidence, no_finding
from smolmoe.pipeline.summary import Records

Shares = Mapping[str, Mapping[str, float]]  # domain -> expert -> share of its choices


def lessons(records: Records) -> list[str]:
    """A sentence for each finding: the conversion, the trainings compared, the routing."""
    found = [*_conversion(records), *_routers(records), *_trainings(records), *_routing(records)]
    return [sentence for sentence in found if sentence]


def routing_table(records: Records) -> tuple[list[str], list[list[str]]] | None:
    """Headings and rows: for each domain the share of each expert, in all probes; None without a probe."""
    probes: dict[str, Shares] = {name: record["result"]["routing"] for name, record in _of_kind(records, "probe")}
    if not probes:
        return None
    domains = list(next(iter(probes.values())))
    columns = [(name, expert) for name, shares in probes.items() for expert in shares[domains[0]]]
    several = len(probes) > 1
    heads = ["text", *(f"{name}: {expert}" if several else expert for name, expert in columns)]
    rows = [[domain, *(f"{probes[name][domain][expert]:.0%}" for name, expert in columns)] for domain in domains]
    return heads, rows


def answers(records: Records) -> list[Mapping[str, Any]]:
    """The answers to prompts, each with `prompt`, `text`, `expert` and `share`."""
    return [answer for _, record in _of_kind(records, "generate") for answer in record["result"]["answers"]]


def page(records: Records) -> str | None:
    """The last page that was written."""
    pages = [record["result"]["page"] for _, record in _of_kind(records, "page")]
    return pages[-1] if pages else None


def _of_kind(records: Records, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((name, record) for name, record in records.items() if record["asked"]["kind"] == kind)


def _conversion(records: Records) -> Iterator[str]:
    for _, record in _of_kind(records, "upcycle"):
        found = record["result"]
        verified, size = found["verification"], found["parameters"]
        if verified is None:
            continue
        logits = verified["logits"]
        sizes = f"{units.parameters(size['dense']['total'])} parameters became " + units.model_size(
            size["moe"]["total"], size["moe"]["active"]
        )
        yield (
            f"The conversion kept the function: {sizes} per token, and on the same text the saved files "
            f"give a loss of {logits['loss']:.4f} ({logits['dense_loss']:.4f} dense); "
            f"the largest difference of a logit is {logits['max_abs']:.1e}."
        )


def _routers(records: Records) -> Iterator[str]:
    """Each training of the routers alone."""
    for _, record in _of_kind(records, "train"):
        found = record["result"]
        if record["asked"]["values"].get("trainable") == "routers" and "before" in found:
            yield (
                f"Training the routers alone, on {units.tokens(found['tokens'])} tokens, took the held-out loss from "
                f"{found['before']['loss']:.4f} to {found['held_out']['loss']:.4f}: "
                "it moves only if the experts differ, and fresh copies do not."
            )


def _trainings(records: Records) -> Iterator[str]:
    """Each run after a conversion, compared with the reference on the same tokens."""
    for _, record in _of_kind(records, "report"):
        found = record["result"]
        reference, before = found["reference"], found["before"]
        for label, row in found["after"].items():
            if "difference" not in row:
                continue
            start = ""
            if before:
                start = f"from {before['loss']:.4f} (which the conversion changed by {row['jump']:+.0e}) "
            base = found["after"][reference]
            yield (
                f"Training on {units.tokens(row['tokens'])} more tokens took the held-out loss {start}"
                f"to {row['final']:.4f} ({label}) and {base['final']:.4f} ({reference}, the same tokens): "
                f"{label} is {_verdict(row['difference'], found['documents'])} (one seed)."
            )


def _verdict(difference: Mapping[str, float], documents: int) -> str:
    gap = Interval(difference["value"], difference["low"], difference["high"])
    words = no_finding(gap, documents)
    if words is not None:
        return f"neither better nor worse: {words}"
    return f"{'better' if gap.high < 0 else 'worse'}, {evidence(gap, documents)}"


def _routing(records: Records) -> Iterator[str]:
    probes = list(_of_kind(records, "probe"))
    if not probes:
        return
    now = probes[-1][1]["result"]
    was = f", {probes[0][1]['result']['accuracy']:.0%} before" if len(probes) > 1 else ""
    yield (
        f"The first choice of expert predicts the domain of a held-out token with an accuracy of {now['accuracy']:.0%} "
        f"({1 / len(now['routing']):.0%} by chance{was})."
    )
    share, domain, expert = max(
        (share, of, to) for of, shares in now["routing"].items() for to, share in shares.items()
    )
    called = expert if expert.startswith("expert ") else f"the expert {expert}"
    yield f"The clearest preference: {share:.0%} of the choices for {domain} are {called}."
