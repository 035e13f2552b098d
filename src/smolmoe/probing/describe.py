"""From counts to the statistics of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from smolmoe.core.statistics import least_share
from smolmoe.moe.balance import load_entropy, load_variation, max_violation
from smolmoe.probing.counting import RoutingCounts
from smolmoe.probing.separation import contrast, domain_information, separation, shares, type_information
from smolmoe.probing.token_types import TYPES, token_texts
from smolmoe.results.probe import Baseline, LayerResult, TokenTypes, TopToken, Vocabulary

TOP_TOKENS = 8
_LOOKED_AT = 8  # times the tokens shown; rare ones with a high share by chance come first
FEWEST = 10  # fewest occurrences of a token whose share is reported


def by_domain(counts: Mapping[str, torch.Tensor], domains: Sequence[str]) -> torch.Tensor:
    """[L, D, Y, E] of the counts [L, Y, E] of each domain."""
    return torch.stack([counts[domain].cpu() for domain in domains], dim=1)


def layer_results(
    counts: RoutingCounts, layers: Sequence[int], domains: Sequence[str], baselines: Mapping[str, Sequence[Baseline]]
) -> list[LayerResult]:
    """The statistics of every layer, with the baselines of shuffled domains."""
    choices, first = by_domain(counts.choices, domains), by_domain(counts.first, domains)
    apart, informative = separation(choices.sum(2)), domain_information(first.sum(2))
    ratio, expert, high, low = contrast(choices.sum(2))
    types = type_information(first)
    load = choices.sum((1, 2))
    confidence = counts.confidence.cpu() / max(1, sum(counts.tokens.values()))
    found = []
    for at, layer in enumerate(layers):
        dead = torch.nonzero(load[at] == 0).flatten().tolist()
        found.append(
            LayerResult(
                layer=layer,
                entropy=load_entropy(load[at : at + 1]).item(),
                cv=load_variation(load[at : at + 1]).item(),
                max_vio=max_violation(load[at : at + 1]).item(),
                dead=dead,
                active_percent=100 * (1 - len(dead) / counts.experts),
                confidence=confidence[at].item(),
                separation=apart[at].item(),
                separation_baseline=baselines["separation"][at],
                mutual_information=informative[at].item(),
                mutual_information_baseline=baselines["information"][at],
                contrast=ratio[at].item(),
                contrast_expert=int(expert[at]),
                contrast_domains=[domains[int(high[at])], domains[int(low[at])]],
                contrast_baseline=baselines["contrast"][at],
                token_type_information=types["type"][at].item(),
                domain_within_type=types["domain_within_type"][at].item(),
                type_within_domain=types["type_within_domain"][at].item(),
            )
        )
    return found


def coactivation(together: torch.Tensor) -> list[list[list[float]]]:
    """[L][E][E]: N_ij / N_i, the share of the tokens of expert i that chose j too (arXiv 2409.02060); 0 for i = j."""
    alone = together.diagonal(dim1=1, dim2=2).clamp_min(1)
    part = together / alone[:, :, None]
    return (part - torch.diag_embed(part.diagonal(dim1=1, dim2=2))).tolist()


def type_table(choices: torch.Tensor, first: torch.Tensor) -> TokenTypes:
    """The choices of each token type, from counts [L, D, Y, E]."""
    tokens = first[0].sum((0, 2)).tolist()
    return TokenTypes(list(TYPES), [int(count) for count in tokens], shares(choices.sum(1)).tolist())


def vocabulary(counts: RoutingCounts, tokenizer: Any) -> Vocabulary:
    """Which tokens each expert is the first choice of: N_ix / N_x (arXiv 2409.02060), of tokens seen ten times.

    The tokens of an expert are those of which it gets more than of all tokens, beyond chance among all comparisons.
    """
    special = [index for index in tokenizer.all_special_ids if index < counts.vocabulary.shape[1]]
    specialisation, top = [], []
    for table in counts.vocabulary:
        table = table.cpu()
        table[special] = 0
        seen = table.sum(1)
        often = torch.nonzero(seen >= FEWEST).flatten()
        table, seen = table[often], seen[often]
        specialisation.append((table.amax(1).sum() / seen.sum()).item() if len(often) else 0.0)
        top.append([_top(table, seen, often, expert, tokenizer) for expert in range(counts.experts)])
    return Vocabulary(specialisation, top, counts.vocabulary.shape[1])


def _top(table: torch.Tensor, seen: torch.Tensor, ids: torch.Tensor, expert: int, tokenizer: Any) -> list[TopToken]:
    """The expert's tokens with the highest share; among equal shares, the more frequent ones."""
    if not len(ids):
        return []
    hits = table[:, expert]
    share, usual = hits.double() / seen, (hits.sum() / seen.sum()).item()
    ranking = share + seen.double() / (seen.max() * math.exp(20))
    first = map(int, ranking.topk(min(_LOOKED_AT * TOP_TOKENS, len(ids))).indices)
    best = [at for at in first if least_share(share[at].item(), int(seen[at]), table.numel()) > usual][:TOP_TOKENS]
    texts = token_texts(tokenizer, [int(ids[at]) for at in best])
    return [TopToken(text, share[at].item(), int(seen[at])) for text, at in zip(texts, best, strict=True)]
