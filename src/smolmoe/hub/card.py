"""The model card of a checkpoint: README.md with the hub's metadata, from its files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from smolmoe.core import units
from smolmoe.families.engines import ENGINES, support
from smolmoe.hub.model_facts import ModelFacts, without_places
from smolmoe.results.verification import QUICK_LEAVES_OUT

MARK = "<!-- Written by smolmoe. Delete this line to keep your own changes. -->"
_NO_DATA = "unknown: smolmoe has no data on this class"
_STAGES = {
    "upcycle": "made from a dense model",
    "train": "trained",
    "align": "trained on answers or preferences",
    "extract": "one expert of an MoE as a standalone model",
    "prune": "an MoE with some of its experts",
    "merge-experts": "an MoE with experts merged",
    "add-expert": "an MoE with an expert added",
}


def card(facts: ModelFacts, *, name: str, comparison: Sequence[str] = ()) -> str:
    """The README.md of a checkpoint.

    Paths of this machine are removed; names, prompts and reasons are escaped.

    Args:
        name: the hub id or folder that the snippets load.
        comparison: the sentences of `smolmoe compare` on this checkpoint.
    """
    parts = [
        f"---\n{_metadata(facts)}---",
        MARK,
        f"# {plain(name.rstrip('/').split('/')[-1])}",
        _what(facts),
        _sizes(facts),
        _claim(facts),
        _losses(facts, comparison),
        _use(facts, name),
        _made(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- metadata --------------------------------------------------------------------------------------------------------


def metadata(facts: ModelFacts) -> dict[str, Any]:
    """The hub's metadata, without unknown entries."""
    origin = facts.provenance.get("origin") or {}
    keys = ("license", "license_name", "license_link", "language")
    found: dict[str, Any] = {key: origin[key] for key in keys if _is_name(origin.get(key))}
    found |= {"base_model": facts.base} if facts.base else {}
    data = sorted({*_names(origin.get("datasets")), *_data_sets(facts.provenance.get("request") or {})})
    found |= {"datasets": data} if data else {}
    found |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": _tags(facts)}
    return found


def _metadata(facts: ModelFacts) -> str:
    return yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)


def _tags(facts: ModelFacts) -> list[str]:
    moe = ["mixture-of-experts", "moe"] if facts.experts else []
    return [*moe, *(["upcycled"] if facts.stage == "upcycle" else []), "smolmoe"]


def _is_name(value: Any) -> bool:
    """Whether a value is one word, or a list of words: a source's card could break the metadata."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and re.fullmatch(r"[\w.+:/#?=&%-]+", word) for word in words)


def _names(found: Any) -> list[str]:
    names = found if isinstance(found, list) else [found]
    return [name for name in names if _is_name(name)]


def _data_sets(request: Mapping[str, Any]) -> list[str]:
    """Hub ids among a recipe's sources of text."""
    sources = (request.get("data") or {}).get("sources") or () if isinstance(request.get("data"), dict) else ()
    paths = [str(source.get("path") or "") for source in sources if isinstance(source, dict)]
    local = (".jsonl", ".json", ".parquet", ".txt", ".csv")
    return [path for path in paths if re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and not path.endswith(local)]


# -- words -----------------------------------------------------------------------------------------------------------


def _what(facts: ModelFacts) -> str:
    shape = _code(facts.architecture)
    if facts.experts:
        shape += f" with {facts.experts} experts, {facts.top_k} of them active per token"
    how = _STAGES.get(facts.stage or "", "")
    base = f" of [{facts.base}](https://huggingface.co/{facts.base})" if facts.base else ""
    made = f", {how}{base if facts.stage == 'upcycle' else ''} by `smolmoe {facts.stage}`" if how else ""
    licence = (facts.provenance.get("origin") or {}).get("license")
    note = "" if licence else "\n\nThe licence of its source is unknown: add one before publishing."
    return f"{shape}{made}.{note}"


def _sizes(facts: ModelFacts) -> str:
    known = {"total": facts.total, **({"active": facts.active} if facts.active else {}), **facts.parameters}
    words = {
        "total": "parameters",
        "active": "active per token",
        "total_without_embeddings": "parameters without embeddings",
        "active_without_embeddings": "active without embeddings",
    }
    rows = [(words[key], f"{known[key]:,}") for key in words if key in known]
    rows.append(("files", f"{plain(' and '.join(facts.dtypes))}, {units.size(facts.nbytes)}"))
    return "## Size\n\n" + table(("", ""), rows)


def _claim(facts: ModelFacts) -> str:
    claim, made = facts.provenance.get("claim"), facts.provenance.get("experts") or {}
    verification = facts.provenance.get("verification") or made.get("measured")
    claim = made.get("claim") or claim
    if not claim:
        return ""
    kind, reason = plain(str(claim.get("kind"))), plain(claim.get("reason") or "")
    lines = [f"## Claim and verification\n\nClaimed: **{kind}**. {reason}"]
    if not verification:
        lines.append("It was not verified when it was written; `smolmoe verify DENSE MODEL` does that.")
        return "\n\n".join(lines)
    checks = verification.get("checks") or ()
    is_quick = verification.get("mode") == "quick"
    held = "holds" if verification.get("passed") else "**does not hold**"
    against = "the dense model" if facts.stage == "upcycle" else "the MoE it was made from"
    said = f"the claim {held}" if claim.get("kind") != "none" else "there is no claim about its function"
    lines.append(
        f"Measured on the written files, reloaded by transformers, in float32, against {against}: {said}, "
        f"{sum(bool(check['passed']) for check in checks)} of {len(checks)} checks passed."
        + (f" The verification was quick: it left out {QUICK_LEAVES_OUT}." if is_quick else "")
    )
    rows = [
        (plain(check["meaning"]), _short(check["measured"]), _short(check["limit"]), _yes(check["passed"]))
        for check in checks
    ]
    lines.append(table(("check", "measured", "limit", "passed"), rows))
    return "\n\n".join(lines)


def _losses(facts: ModelFacts, comparison: Sequence[str]) -> str:
    rows: list[tuple[str, str, str]] = []
    logits = (facts.provenance.get("verification") or {}).get("logits") or {}
    if "dense_loss" in logits:
        text = plain(str(facts.provenance["verification"].get("text", "sample text")))
        rows += [
            ("dense model it was made from", f"{float(logits['dense_loss']):.4f}", text),
            ("this model", f"{float(logits['loss']):.4f}", text),
        ]
    held, start = facts.measured.get("held_out") or {}, facts.measured.get("start") or {}
    where = f"{held.get('tokens', 0):,} held-out tokens"
    if "loss" in start:
        rows.append(("before this training", f"{float(start['loss']):.4f}", where))
    if "loss" in held:
        rows.append(("this model", f"{float(held['loss']):.4f}", where))
        domains = (held.get("by_domain") or {}).items()
        rows += [(f"… {plain(name)}", f"{float(loss):.4f}", "") for name, loss in domains] if len(domains) > 1 else []
    said = "\n".join(f"- {plain(sentence)}" for sentence in comparison)
    if not rows and not said:
        return ""
    losses = table(("model", "loss, nats per token", "on"), rows) if rows else ""
    return "\n\n".join(part for part in ("## Losses", losses, said) if part)


def _use(facts: ModelFacts, name: str) -> str:
    runs = engines(facts)
    parts = ["## Use"]
    for engine, snippet in _snippets(facts, name).items():
        known = runs[engine]
        parts.append(f"**{engine}**: {plain(known)}")
        if not re.match(r"no(?![\w ])", known):
            parts.append(snippet)
    return "\n\n".join(parts)


def engines(facts: ModelFacts) -> dict[str, str]:
    """Engine -> whether it runs this model."""
    if facts.target is None:
        dense = "yes, if it runs this dense class" if not facts.experts else _NO_DATA
        return {"transformers": "yes", **dict.fromkeys(list(ENGINES)[1:], dense)}
    said = {}
    for engine, why in facts.runs_in.items():
        found = support(engine, facts.target.name)
        able = f"yes, with {found.needs}" if found and found.needs else "yes"
        said[engine] = f"no: {'; '.join(why)}" if why else able
    return said


def _snippets(facts: ModelFacts, name: str) -> dict[str, str]:
    quoted, code = json.dumps(name, ensure_ascii=False), ", trust_remote_code=True" if facts.needs_code else ""
    shell = "'" + name.replace("'", "'\\''") + "'"
    python = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"name = {quoted}\ntokenizer = AutoTokenizer.from_pretrained(name)\n"
        f"model = AutoModelForCausalLM.from_pretrained(name{code})\n"
        'inputs = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"
    )
    served = {
        engine: fence(command.format(model=shell, code=" --trust-remote-code" if facts.needs_code else ""), "sh")
        for engine, command in ENGINES.items()
    }
    return served | {"transformers": f"{fence(python, 'python')}\n\n{served['transformers']}"}


def _made(facts: ModelFacts) -> str:
    values = without_places(dict(facts.provenance))
    if not values:
        return ""
    rows = [(plain(f"source, {key}"), f"{_code(name)}{plain(extra)}") for key, name, extra in sources(values)]
    rows += [("seed", plain(str(values["seed"])))] if values.get("seed") is not None else []
    if values.get("versions"):
        rows.append(("versions", plain(", ".join(f"{key} {found}" for key, found in values["versions"].items()))))
    warnings = "\n".join(f"- {plain(str(warning))}" for warning in values.get("warnings") or ())
    command = values.get("command")
    again = f"To reproduce it:\n\n{fence(command, 'sh')}" if command else ""
    everything = "`smolmoe.json` records the full request and all measurements."
    return "\n\n".join(
        part
        for part in ("## How it was made", table(("", ""), rows) if rows else "", warnings, again, everything)
        if part
    )


def sources(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(role, name, revision and hash in words) of all sources of a checkpoint."""
    found = []
    for key, source in (values.get("sources") or {}).items():
        if not source:
            continue
        revision = f", revision {source['revision']}" if source.get("revision") else ""
        found.append((str(key), str(source.get("name")), f"{revision}, sha256 {str(source.get('sha256'))[:16]}"))
    if values.get("source"):
        source = values["source"]
        found.append(("trained on from", str(source.get("folder")), f", sha256 {str(source.get('sha256'))[:16]}"))
    return found


# -- markdown --------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text with markdown and HTML escaped."""
    return _escaped(_one_line(text).strip())


def prose(text: str) -> str:
    """The same, except that what stands between backticks is code."""
    parts = re.split("`([^`]+)`", _one_line(text).strip())
    return "".join(_code(part) if place % 2 else _escaped(part) for place, part in enumerate(parts))


def _escaped(text: str) -> str:
    flat = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", flat)


def _one_line(text: str) -> str:
    """Text without line ends, control characters, and characters that change the direction of writing."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+", " ", text)


def _code(text: str) -> str:
    """Text as code inside a table's cell."""
    flat = _one_line(text).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def fence(text: str, language: str) -> str:
    """A block of code, whatever ticks are in it."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def _short(number: float | str) -> str:
    """A number of smolmoe.json, where NaN and infinities are text."""
    return f"{float(number):.2g}"


def _yes(passed: object) -> str:
    return "yes" if passed else "**no**"
