"""A plausible `probe.json` from a seed: experts that lean to a domain, and numbers that agree with one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.reports.specialisation_data import Probed
from smolmoe.results.probe import ProbeResult

WORDS = {
    "math": ["Solve", " 12", " +", " 7", " =", " 19", ".", "\n", "Let", " x", " <", " y", " &", " z"],
    "code": ["def", " f", "(", "x", "):", "\n", "\t", "return", " x", "<", "/script", ">", "\n\n", "#", " é"],
    "web": ["The", " quick", " page", " of", " news", ",", " said", " he", ' "', "so", '"', "…", "\u00a0", "!"],
}
OTHER = ["once", " upon", " a", " time", "\n", " there", " was", " a", " fox", "."]
TYPES = ["word", "number", "punctuation", "space"]


def make_probe(
    domains: tuple[str, ...] = ("math", "code", "web"),
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: int = 6,
    names: bool = True,
    nulls: bool = False,
    sharpness: float = 2.0,
    seed: int = 0,
    length: int = 40,
) -> dict[str, Any]:
    """The fields of `ProbeResult.to_json()`; `nulls` leaves out whatever may be left out."""
    rng = np.random.default_rng(seed)
    owner = [[place % len(domains) if place < experts - 1 else None for place in range(experts)] for _ in range(layers)]
    named = [domains[place] if place is not None else None for place in owner[0]]
    matrix = _matrix(rng, len(domains), owner, sharpness)
    load = matrix.mean(1)
    macro = np.linspace(0.4, 0.82, layers)
    table = np.clip(macro[:, None] + rng.normal(0, 0.06, (layers, len(domains))), 0.05, 0.99)
    probe = {
        "model": {
            "folder": "runs/mix <b>",
            "class_name": "MixtralForCausalLM",
            "experts": experts,
            "top_k": top_k,
            "layers": list(range(layers)),
            "names": named if names else None,
            "named_layers": None,
        },
        "data": {"path": "validation.jsonl", "by": "domain"},
        "domains": list(domains),
        "tokens": {domain: 9000 + 100 * place for place, domain in enumerate(domains)},
        "documents": {domain: 60 + place for place, domain in enumerate(domains)},
        "load": load,
        "layers": [_layer(rng, place, load[place], domains) for place in range(layers)],
        "matrix": matrix,
        "matrix_chance": None if nulls else _chance(matrix),
        "coactivation": _pairs(rng, layers, experts, 0.35),
        "token_types": {
            "names": TYPES,
            "tokens": [5000, 800, 900, 2300],
            "matrix": rng.dirichlet(np.full(experts, 2.0), (layers, len(TYPES))),
        },
        "within_type_separation": rng.uniform(0.1, 0.25, layers),
        "vocabulary": {
            "specialisation": rng.uniform(0.4, 0.8, layers),
            "top": [[_top(rng, domains, owner[0][e]) for e in range(experts)] for _ in range(layers)],
            "counted": 4096,
        },
        "saturation": None if nulls else np.linspace(0.5, 0.9, layers),
        "similarity": {kind: _pairs(rng, layers, experts, top) for kind, top in SIMILAR.items()} | {"tokens": 512},
        "accuracy": {
            "owner": owner,
            "owners_from": ["names" if names else "learned"] * layers,
            "documents": dict.fromkeys(domains, 30),
            "tokens": dict.fromkeys(domains, 4500),
            "per_token": table,
            "macro": table.mean(1),
            "document_majority": np.clip(table + 0.14, 0, 1),
            "linear_probe": np.clip(table + 0.05, 0, 1),
            "linear_probe_macro": np.clip(table + 0.05, 0, 1).mean(1),
            "dense_linear_probe": None if nulls else np.clip(table + 0.02, 0, 1),
            "dense_linear_probe_macro": None if nulls else np.clip(table + 0.02, 0, 1).mean(1),
            "all_layers": _span(list(range(layers)), table, nulls),
        },
        "last_third": _span(list(range(layers - max(1, layers // 3), layers)), table[-max(1, layers // 3) :], nulls),
        "losses": None if nulls else _losses(rng, domains),
        "text": [_excerpt(rng, domain, owner, matrix, domains, top_k, length) for domain in domains for _ in range(2)],
        "seconds": {"forward": 3.2},
        "format": 1,
    }
    return json.loads(json.dumps(probe, default=lambda values: np.round(values, 5).tolist()))


SIMILAR = {"cka": 0.7, "output_cosine": 0.5, "weight_cosine": 0.98}


def probed(values: dict[str, Any]) -> Probed:
    """`make_probe` as its figures take it."""
    return Probed(ProbeResult.from_json(values))


def write_probe(path: Path, **options: Any) -> Path:
    """`make_probe` as the `probe.json` of a new folder."""
    path.mkdir(parents=True)
    (path / "probe.json").write_text(json.dumps(make_probe(**options)), encoding="utf-8")
    return path


def write_metrics(path: Path, *, steps: int = 60, layers: int = 6, experts: int = 8, seed: int = 0) -> Path:
    """The `metrics.jsonl` of a run folder, as a training writes it; no experts make it that of a dense model."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        ce = 3.2 + np.exp(-step / 20) + rng.normal(0, 0.05)
        terms = {"load_balance": 0.0102, "z_loss": 0.004, "guidance": 0.3 * np.exp(-step / 25)} if experts else {}
        if step:
            rows.append({"kind": "step", "step": step, "loss": ce + sum(terms.values()), "ce": ce, **terms})
        if step % 10 == 0:
            by_layer = np.clip(0.7 + 0.004 * step + rng.uniform(-0.05, 0.05, layers), 0, 1).round(4).tolist()
            routing = {
                "balance": float(np.mean(by_layer)),
                "max_violation": 1.5 - step / 80,
                "active_experts": layers * experts - (3 if step == 20 else 0),
                "balance_by_layer": by_layer,
            }
            kept = routing if experts else {}
            if step:
                rows.append({"kind": "window", "step": step, "ce": ce, "tokens": 2048 * step, **kept})
            domains = {"math": ce - 0.5, "code": ce, "web": ce + 0.4}
            rows.append({"kind": "held_out", "step": step, "loss": ce + 0.05, "by_domain": domains, **kept})
        if step == 20 and experts:
            rows.append({"kind": "alarm", "step": step, "collapsed_layers": [2], "dead": [[2, 5]]})
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _matrix(rng: Any, domains: int, owner: list[list[int | None]], sharpness: float) -> np.ndarray:
    logits = rng.normal(0, 0.5, (len(owner), domains, len(owner[0])))
    for layer, row in enumerate(owner):
        for expert, domain in enumerate(row):
            if domain is not None:
                logits[layer, domain, expert] += sharpness * (0.3 + layer / len(owner))
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def _chance(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Every domain's share of an expert by chance: about the expert's load."""
    load = np.broadcast_to(matrix.mean(1, keepdims=True), matrix.shape)
    return {"low": np.clip(load - 0.1, 0, 1), "high": np.clip(load + 0.1, 0, 1)}


def _layer(rng: Any, layer: int, load: np.ndarray, domains: tuple[str, ...]) -> dict[str, Any]:
    baseline = {"mean": 0.01, "p95": 0.02}
    return {
        "layer": layer,
        "entropy": float(-(load * np.log(load)).sum() / np.log(load.size)),
        "cv": float(load.std() / load.mean()),
        "max_vio": float(load.max() / load.mean() - 1),
        "dead": [1] if layer == 1 else [],
        "active_percent": 100.0 if layer != 1 else 100 - 100 / load.size,
        "confidence": 0.66,
        "separation": 0.08 + 0.05 * layer + float(rng.uniform(0, 0.05)),
        "separation_baseline": baseline,
        "mutual_information": 0.12 + 0.06 * layer,
        "mutual_information_baseline": baseline,
        "contrast": 1.6 + 0.5 * layer,
        "contrast_expert": 3,
        "contrast_domains": list(domains[:2]),
        "contrast_baseline": {"mean": 1.2, "p95": 1.4},
        "token_type_information": 0.2,
        "domain_within_type": 0.07 + 0.04 * layer,
        "type_within_domain": 0.16,
    }


def _pairs(rng: Any, layers: int, experts: int, top: float) -> np.ndarray:
    values = rng.uniform(0.3 * top, top, (layers, experts, experts))
    values = (values + values.swapaxes(1, 2)) / 2
    values[:, np.arange(experts), np.arange(experts)] = 1
    return values


def _top(rng: Any, domains: tuple[str, ...], owner: int | None) -> list[dict[str, Any]]:
    words = OTHER if owner is None else WORDS.get(domains[owner], OTHER)
    chosen = rng.choice(len(words), 5, replace=False)
    return [
        {"token": words[place], "share": float(rng.uniform(0.5, 1)), "count": int(rng.integers(5, 90))}
        for place in chosen
    ]


def _span(layers: list[int], table: np.ndarray, nulls: bool) -> dict[str, Any]:
    per_domain = table.mean(0)
    return {
        "layers": layers,
        "accuracy": float(per_domain.mean()),
        "per_domain": per_domain,
        "document_majority": np.clip(per_domain + 0.14, 0, 1),
        "ceiling": float(np.clip(per_domain + 0.05, 0, 1).mean()),
        "ceiling_per_domain": np.clip(per_domain + 0.05, 0, 1),
        "dense_ceiling": None if nulls else float(np.clip(per_domain + 0.02, 0, 1).mean()),
        "dense_ceiling_per_domain": None if nulls else np.clip(per_domain + 0.02, 0, 1),
        "interval": interval(float(per_domain.mean()), 0.02),
    }


def interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _losses(rng: Any, domains: tuple[str, ...]) -> dict[str, Any]:
    count = len(domains)
    base = {domain: 3.0 + 0.3 * place for place, domain in enumerate(domains)}
    own = np.eye(count, dtype=bool)
    start = np.array(list(base.values()))[:, None]
    return {
        "base": base,
        "labels": list(domains),
        "own": list(range(count)),
        "forced": start + np.where(own, -0.012, rng.uniform(0.1, 0.9, (count, count))),
        "knocked_out": start + np.where(own, 0.34, rng.uniform(0.0, 0.06, (count, count))),
        "dense": {domain: loss + 0.05 - 0.06 * (domain == "web") for domain, loss in base.items()},
        "tokens": dict.fromkeys(domains, 4500),
        "flags": ["web: the loss is 0.0100 higher than the dense model's: the specialisation makes it worse."],
        "documents": dict.fromkeys(domains, 30),
        "forced_gap": [interval(-0.3, 0.1)] * count,
        "knocked_out_gap": [interval(0.34, 0.1)] * count,
        "elsewhere_gap": [interval(0.3, 0.1)] * count,
        "dense_gap": [interval(-0.05, 0.02)] * count,
        "copied": [],
        "summary": [f"Loss without a domain's own experts: higher for {domains[0]}, as measured."],
    }


def _excerpt(
    rng: Any,
    domain: str,
    owner: list[list[int | None]],
    matrix: np.ndarray,
    domains: tuple[str, ...],
    k: int,
    length: int,
) -> dict[str, Any]:
    words = WORDS.get(domain, OTHER)
    layers, _, experts = matrix.shape
    chosen = [
        [rng.choice(experts, k, replace=False, p=matrix[layer, domains.index(domain)]).tolist() for _ in range(length)]
        for layer in range(layers)
    ]
    gates = np.sort(rng.dirichlet(np.ones(k), (layers, length)))[..., ::-1]
    return {
        "domain": domain,
        "tokens": [words[at % len(words)] for at in range(length)],
        "experts": chosen,
        "gates": gates,
    }
