"""The result of `probe`, written to `probe.json`.

D domains, L MoE layers, E experts, K experts per token, Y token types. Comments state the shapes of nested lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from smolmoe.core.statistics import Interval
from smolmoe.results.base import Result

FORMAT = 1  # of files from before schema_version; still written
FILE = "probe.json"


@dataclass(frozen=True)
class Baseline:
    """A statistic with the domain labels shuffled over the documents: mean and 95th percentile."""

    mean: float
    p95: float


@dataclass(frozen=True)
class CellChance:
    """Range of each expert's share of a domain with the domain labels shuffled over the documents.

    All cells are in their ranges in 95% of the shuffles, so one beyond its range is a finding among all of them.
    """

    low: list[list[list[float]]]  # [L][D][E]
    high: list[list[list[float]]]  # [L][D][E]


@dataclass(frozen=True)
class ModelFacts:
    """The probed model; `names` of its experts, if any, and `named_layers` if only some layers were guided."""

    folder: str
    class_name: str
    experts: int
    top_k: int
    layers: list[int]
    names: list[str | None] | None
    named_layers: list[int] | None


@dataclass(frozen=True)
class LayerResult:
    """One MoE layer.

    Attributes:
        layer: its index in the model.
        entropy: of the load, over ln E: 1 is even.
        cv, max_vio: std / mean and max / mean - 1 of the load.
        dead: experts that no token reached.
        active_percent: of the experts, those that a token reached.
        confidence: mean gate of the first choice.
        separation: mean Jensen-Shannon divergence of two domains' choices, in bits: 0 equal, 1 disjoint.
        mutual_information: of domain and first choice, domains weighted equally, in bits.
        contrast: how many times more likely `contrast_expert` is in the first of `contrast_domains` than in the second.
        token_type_information: of token type and first choice, in bits.
        domain_within_type: of domain and first choice given the type, in bits.
        type_within_domain: of type and first choice given the domain, in bits.
    """

    layer: int
    entropy: float
    cv: float
    max_vio: float
    dead: list[int]
    active_percent: float
    confidence: float
    separation: float
    separation_baseline: Baseline
    mutual_information: float
    mutual_information_baseline: Baseline
    contrast: float
    contrast_expert: int
    contrast_domains: list[str]
    contrast_baseline: Baseline
    token_type_information: float
    domain_within_type: float
    type_within_domain: float


@dataclass(frozen=True)
class TokenTypes:
    """`matrix`: share of each expert in each type's choices; zeros for a type that did not occur."""

    names: list[str]
    tokens: list[int]
    matrix: list[list[list[float]]]  # [L][Y][E]


@dataclass(frozen=True)
class TopToken:
    """A token, its number of occurrences, and the share of these whose first choice was the expert."""

    token: str
    share: float
    count: int


@dataclass(frozen=True)
class Vocabulary:
    """`specialisation`: mean over occurrences of the share of each token's most frequent first-choice expert.

    `counted`: token ids below this one were counted; rare tokens are left out.
    """

    specialisation: list[float]  # [L]
    top: list[list[list[TopToken]]]  # [L][E][at most a few]
    counted: int


@dataclass(frozen=True)
class Similarity:
    """Similarity of every two experts: of outputs on the same `tokens` router inputs, and of weights."""

    cka: list[list[list[float]]]  # [L][E][E]
    output_cosine: list[list[list[float]]]  # [L][E][E]
    weight_cosine: list[list[list[float]]]  # [L][E][E]
    tokens: int


@dataclass(frozen=True)
class Span:
    """Accuracy over several layers: means over layers; the majority of a document is over all their choices.

    `ceiling` is the linear probe on the routers' inputs, `dense_ceiling` that on the dense model's FFN inputs.
    `interval` is that of `accuracy`, over the documents of each domain.
    """

    layers: list[int]
    accuracy: float
    per_domain: list[float]
    document_majority: list[float]
    ceiling: float
    ceiling_per_domain: list[float]
    dense_ceiling: float | None
    dense_ceiling_per_domain: list[float] | None
    interval: Interval | None = None


@dataclass(frozen=True)
class Accuracy:
    """Domain accuracy of the first choice, on documents that nothing was fitted to.

    Attributes:
        owner: index of the domain of each expert, None for a free one.
        owners_from: for each layer "names", or "learned" from the fitting documents.
        documents, tokens: evaluated, per domain.
        per_token, document_majority, macro: share of correct tokens and documents; `macro` is the mean over domains.
        linear_probe: per token, by logistic regression on the router's input; `dense_...` on the dense FFN's input.
    """

    owner: list[list[int | None]]  # [L][E]
    owners_from: list[str]  # [L]
    documents: dict[str, int]
    tokens: dict[str, int]
    per_token: list[list[float]]  # [L][D]
    macro: list[float]  # [L]
    document_majority: list[list[float]]  # [L][D]
    linear_probe: list[list[float]]  # [L][D]
    linear_probe_macro: list[float]  # [L]
    dense_linear_probe: list[list[float]] | None  # [L][D]
    dense_linear_probe_macro: list[float] | None  # [L]
    all_layers: Span


@dataclass(frozen=True)
class Losses:
    """Held-out loss of each domain, in nats per token: unchanged, with a group of experts forced, and knocked out.

    Attributes:
        labels: the groups: a name, "expert 3", or "experts of code" (those of a domain, layer by layer).
        own: for each domain the index of its group, or None.
        knocked_out: None if the group has all experts of a layer.
        dense: of the dense model, if given.
        flags: sentences on domains that the specialisation harms or does not affect; the first ones state copies among
            the experts and too few documents.
        documents: of each domain.
        forced_gap: per domain, forced to its experts minus forced to the best of other domains'.
        knocked_out_gap: per domain, with its experts knocked out minus unchanged.
        elsewhere_gap: that difference minus the largest such difference of another domain.
        dense_gap: per domain, unchanged minus the dense model's.
        copied: domains whose experts are copies of others, which are not evaluated.
        summary: sentences that state which differences are findings.
    """

    base: dict[str, float]
    labels: list[str]
    own: list[int | None]  # [D]
    forced: list[list[float]]  # [D][labels]
    knocked_out: list[list[float | None]]  # [D][labels]
    dense: dict[str, float] | None
    tokens: dict[str, int]
    flags: list[str]
    documents: dict[str, int] = field(default_factory=dict)
    forced_gap: list[Interval | None] = field(default_factory=list)  # [D]
    knocked_out_gap: list[Interval | None] = field(default_factory=list)  # [D]
    elsewhere_gap: list[Interval | None] = field(default_factory=list)  # [D]
    dense_gap: list[Interval | None] = field(default_factory=list)  # [D]
    copied: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Excerpt:
    """The tokens of a held-out text, with experts and gates at each layer, the first choice first."""

    domain: str
    tokens: list[str]  # [S]
    experts: list[list[list[int]]]  # [L][S][K]
    gates: list[list[list[float]]]  # [L][S][K]


class ProbeResult(Result):
    """All measurements of a probe.

    Attributes:
        data: the text and the options.
        tokens, documents: read, per domain.
        load: share of each expert in all choices.
        matrix: share of each expert in each domain's choices.
        matrix_chance: range of these shares by chance; None in files of earlier versions.
        coactivation: N_ij / N_i, the share of the tokens of expert i that chose j as well.
        within_type_separation: `separation` between domains within one token type, mean over types.
        saturation: |E_t ∩ E_T| / K against another checkpoint on the same tokens.
        last_third: accuracy over the last third of the layers.
    """

    kind: Literal["probe"] = "probe"
    model: ModelFacts
    data: dict[str, Any]
    domains: list[str]
    tokens: dict[str, int]
    documents: dict[str, int]
    load: list[list[float]]  # [L][E]
    layers: list[LayerResult]
    matrix: list[list[list[float]]]  # [L][D][E]
    coactivation: list[list[list[float]]]  # [L][E][E]
    token_types: TokenTypes
    within_type_separation: list[float]  # [L]
    vocabulary: Vocabulary
    saturation: list[float] | None  # [L]
    similarity: Similarity
    accuracy: Accuracy
    last_third: Span
    losses: Losses | None
    text: list[Excerpt]
    seconds: dict[str, float]
    matrix_chance: CellChance | None = None
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain data, rounded to six decimals."""
        return dict(_rounded(super().to_json()))

    @classmethod
    def is_one(cls, values: Any) -> bool:
        return isinstance(values, dict) and values.get("format") == FORMAT and "matrix" in values


def read_result(path: Path) -> ProbeResult:
    """The result in a folder that `probe` wrote, or in its `probe.json`.

    Raises:
        DataError: the file is missing, or not of this form.
    """
    return ProbeResult.read(path / FILE if path.is_dir() else path)


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 6) if isinstance(values, float) else values
