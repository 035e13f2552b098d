"""Informed router initialisation: the rows are the directions in which domains differ at the FFN's input.

Rows come from centroids of the FFN's actual inputs on domain-tagged text (compare the cluster centroids
of arXiv 2604.13508). A stock router has no bias, so a row that points along the mean input would favour its expert on
every token: the mean's direction is removed. Rows of a layer are then scaled jointly so that logits have std 1, or 0.05
with independent gates, which are to stay near their value at zero logits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smolmoe.errors import DataError
from smolmoe.surgery.ffn_inputs import each_layers_inputs, sequence_length
from smolmoe.surgery.plan import Plan
from smolmoe.surgery.sources import BASE
from smolmoe.surgery.tensors.initialisers import generator

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TOKENS_PER_DOMAIN = 2048
UNTAGGED_TOKENS = 8192  # of documents without a domain, for k-means
LOGIT_STD = {"normalised": 1.0, "independent": 0.05}
_KMEANS_ROUNDS = 20
UNTAGGED = "untagged"  # documents without a domain, which k-means reads too


@dataclass(frozen=True)
class RouterRows:
    """Router rows per layer's stream, [E / repeat, D], and their predicted load.

    Attributes:
        rows: by the plan's stream name.
        domains: the domain that each row was made for, or "cluster i".
        load: per MoE layer, the predicted share of choices of each of the E experts on the text.
    """

    rows: dict[str, Tensor]
    domains: tuple[str, ...]
    load: dict[int, list[float]]

    def to_json(self) -> dict[str, Any]:
        return {"rows_for": list(self.domains), "predicted_load": {str(i): v for i, v in self.load.items()}}


def domain_rows(plan: Plan, tokenizer: Any) -> RouterRows:
    """Rows for `router: domains`.

    Raises:
        DataError: no domains in the data, or more domains than groups of experts.
    """
    from smolmoe.data.text import encode, read_documents

    assert plan.recipe.router_data is not None
    by_domain: dict[str, list[Any]] = {}
    untagged = 0
    reads_tags = plan.recipe.router_centroids == "mean"
    for document in read_documents(plan.recipe.router_data):
        if document.domain or not reads_tags:
            by_domain.setdefault(document.domain or UNTAGGED, []).append(document)
        else:
            untagged += 1
    if untagged and by_domain:
        logger.warning("%s: %d documents without a domain are skipped.", plan.recipe.router_data, untagged)
    owners = _owners(plan, sorted(by_domain))
    length = sequence_length(plan.sources[BASE].checkpoint.folder)
    sequences: list[list[int]] = []
    tags: list[int] = []
    for index, domain in enumerate(sorted(by_domain)):
        ids = encode(
            tokenizer,
            by_domain[domain],
            length=length,
            count=(UNTAGGED_TOKENS if domain == UNTAGGED else TOKENS_PER_DOMAIN) // length,
            seed=plan.recipe.seed,
            data=f"{plan.recipe.router_data}, domain {domain}",
        )
        sequences += ids
        tags += [index] * len(ids)
    return _rows_of_layers(plan, sequences, tags, owners, sorted(by_domain))


def _owners(plan: Plan, domains: list[str]) -> list[int]:
    """The domain of each row, assigned round-robin."""
    count = _row_count(plan)
    data = str(plan.recipe.router_data)
    if len(domains) < 2 and plan.recipe.router_centroids == "mean":
        raise DataError(
            f"contains {len(domains)} domain(s); at least two are needed.",
            field="router_data",
            value=data,
            fix='Rows must be {"text": ..., "domain": ...}.',
        )
    if len(domains) > count and plan.recipe.router_centroids == "mean":
        raise DataError(
            f"{len(domains)} domains, but only {count} groups of experts.",
            field="router_data",
            value=data,
            fix="Use more experts, or `router_centroids='kmeans'`.",
        )
    return [i % len(domains) for i in range(count)]


def _row_count(plan: Plan) -> int:
    return plan.layout.experts // plan.layer(plan.layout.moe_layers[0]).router_rows().repeat


def _rows_of_layers(
    plan: Plan, sequences: list[list[int]], tags: list[int], owners: list[int], domains: list[str]
) -> RouterRows:
    import torch

    from smolmoe.moe.reference import choose, expert_load

    rows: dict[str, Tensor] = {}
    load: dict[int, list[float]] = {}

    def consume(layer: int, inputs: list[Tensor]) -> None:
        if layer not in plan.layout.moe_layers:
            return
        block = plan.layer(layer).router_rows()
        x = torch.cat(inputs)
        tag = torch.cat([torch.full((len(part),), t) for part, t in zip(inputs, tags, strict=True)])
        rng = generator(plan.recipe.seed, block.stream)
        whole = plan.recipe.router_centroids == "kmeans"
        centroids = kmeans(x, len(owners), rng) if whole else _centroids_by_domain(x, tag, owners, rng)
        rows[block.stream] = rows_from_centroids(x, centroids) * LOGIT_STD[plan.recipe.gates]
        logits = x @ rows[block.stream].repeat_interleave(block.repeat, 0).T
        _, chosen = choose(logits, plan.layout.top_k, plan.scoring)
        load[layer] = expert_load(chosen, plan.layout.experts).tolist()

    each_layers_inputs(plan.sources[BASE].checkpoint.folder, sequences, consume, device=plan.recipe.device)
    whole = plan.recipe.router_centroids == "kmeans"
    names = tuple(f"cluster {i}" if whole else domains[owner] for i, owner in enumerate(owners))
    return RouterRows(rows, names, load)


def _centroids_by_domain(x: Tensor, tag: Tensor, owners: Sequence[int], rng: Any) -> Tensor:
    """One centroid per row [R, D]: its domain's mean, or k-means within the domain where several rows share it."""
    import torch

    out = torch.empty(len(owners), x.shape[1])
    for domain in set(owners):
        mine = [i for i, owner in enumerate(owners) if owner == domain]
        out[mine] = kmeans(x[tag == domain], len(mine), rng)
    return out


def kmeans(x: Tensor, count: int, rng: Any) -> Tensor:
    """Centroids [count, D] of x [T, D] by Lloyd's algorithm from random tokens; an empty cluster keeps its centroid."""
    import torch

    if count == 1:
        return x.mean(0, keepdim=True)
    centroids = x[torch.from_numpy(rng.permutation(len(x))[:count])].clone()
    for _ in range(_KMEANS_ROUNDS):
        nearest = torch.cdist(x, centroids).argmin(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, x)
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
    return centroids


def rows_from_centroids(x: Tensor, centroids: Tensor) -> Tensor:
    """Router rows [R, D]: centroids minus the mean input, orthogonal to it, of equal length; logits of std 1 over x."""
    mean = x.mean(0)
    direction = mean / mean.norm().clamp(min=1e-12)
    rows = centroids - mean
    rows = rows - (rows @ direction).unsqueeze(1) * direction
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return rows / (x @ rows.T).std().clamp(min=1e-12)
