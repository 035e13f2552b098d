"""The description of an architecture: the vocabulary of the family files. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smolmoe.families.adapt import Adaptation

if TYPE_CHECKING:
    from smolmoe.families.forms import DenseForm


@dataclass(frozen=True)
class Slot:
    """Where one of the FFN's projections lives.

    `name` is the module inside the FFN (`gate_proj`, `c_fc`); `half` is 0 or 1 where gate and up are fused into one
    matrix of 2F rows, gate rows first being half 0 (Phi-3's `gate_up_proj`), else None.
    """

    name: str
    half: int | None = None


@dataclass(frozen=True)
class MlpLayout:
    """Where a decoder keeps its feed-forward networks, and what they compute.

    A gated FFN is down(act(gate(x)) * up(x)); a plain one (gate is None) is down(act(up(x))).

    Attributes:
        layers: module path of the list of decoder layers in the causal LM, e.g. `model.layers` or `transformer.h`.
        module: path of the FFN inside a layer, e.g. `mlp`.
        gate, up, down: the projections.
        transposed: weights are stored [in, out] (GPT-2's Conv1D) rather than [out, in].
        bias: every projection has a bias.
        activation: a key of transformers' ACT2FN.
        dropout: probability of the dropout after `down` (GPT-2's resid_pdrop); 0 without dropout.
    """

    layers: str
    module: str
    gate: Slot | None
    up: Slot
    down: Slot
    transposed: bool = False
    bias: bool = False
    activation: str = "silu"
    dropout: float = 0.0

    @property
    def gated(self) -> bool:
        return self.gate is not None


@dataclass(frozen=True)
class DenseFamily:
    """The properties of a dense architecture that surgery needs.

    Attributes:
        model_type: its name in transformers.
        examples: well-known checkpoints.
        mlp: location of the feed-forward network.
        targets: native MoE classes whose attention and norms compute the same, the preferred first. What a request
            asks of them beyond that is in each target's own capabilities.
        attention_bias: which projections have a bias: "none", "qkv", "qkvo", "config" (all four, where
            `config.attention_bias` is set), or a function of the config.
        centred: its norms are LayerNorm without weights, which RMSNorm equals if the FFN's output is centred, and all
            else that `adapt` names.
        constants: settings that every MoE class has and this class's config lacks, since they are fixed in it.
        multipliers: it scales its embeddings, residual branches, attention and logits, as Granite does.
        mlp_bias: config key that gives the FFN biases, or None.
        mlp_dropout: config key of the dropout after the FFN's down projection, or None.
        qk_norm: "none", "head" (over each head) or "full" (over the whole projection).
        windows: where a sliding window may act: "none", "global" (every layer the same), "layers" (`layer_types`), or
            a function of the config that gives the window of each layer.
        activation: config key of the activation.
        rotated: from the config, which layers rotate queries and keys; None: all of them.
        partial_rotary: only `partial_rotary_factor` of the rotary parameters, a share of each head, rotates.
        width_key: config key of F.
        ffn_width: from the config, F; None: the value of `width_key`.
        plain_width: settings with which the value of `width_key` is F.
        adapt: from the description and the name of a target, what makes its tensors and settings fit the target.
        by_class: the names and shapes of its tensors are those of its class in transformers; otherwise Llama's, which
            are known without importing transformers.
        norms: the layer's norms by tensor name, of a family with Llama's names.
        defaults: what the config class assumes for settings that a config.json may leave out; empty: transformers reads
            the config.
        own_tokenizer: transformers always uses this model type's pre-tokenizer, whatever the tokenizer's files say.
    """

    model_type: str
    examples: str
    mlp: MlpLayout
    targets: tuple[str, ...] = ()
    attention_bias: str | Callable[[Any], str] = "none"
    centred: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)
    multipliers: bool = False
    mlp_bias: str | None = None
    mlp_dropout: str | None = None
    qk_norm: str = "none"
    windows: str | Callable[[Any], tuple[int | None, ...]] = "none"
    activation: str = "hidden_act"
    rotated: Callable[[Any], tuple[bool, ...]] | None = None
    partial_rotary: bool = False
    width_key: str = "intermediate_size"
    ffn_width: Callable[[Any], int] | None = None
    plain_width: Mapping[str, Any] = field(default_factory=dict)
    adapt: Callable[[DenseSpec, str], Adaptation] | None = None
    by_class: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    defaults: Mapping[str, Any] = field(default_factory=dict)
    own_tokenizer: bool = False


_OWN_ROPE = ("partial_rotary_factor", "llama_4_scaling_beta", "max_position_embeddings")


@dataclass(frozen=True)
class DenseSpec:
    """The description of one dense checkpoint, from its config alone.

    Attributes:
        family: its known architecture, or None if the FFN was detected from the class.
        model_type, architecture: transformers' names.
        hidden_size, ffn_size, layers, vocab_size: D, F, L, V.
        heads, kv_heads, head_dim: of the attention (0 where the config does not say).
        attention_bias: "none", "qkv", "qkvo", or "other" outside the known families.
        qk_norm: "none", "head", "full" or "other".
        windows: the sliding window of each layer, None for full attention.
        rotated: whether each layer rotates queries and keys (rotary positions).
        rotary_share: how much of each head rotates, the first rows: 1 for all of it.
        tied: the output head is the input embedding.
        mlp: location of the FFN and what it computes.
        config: the config as normalised by transformers, with explicit defaults.
    """

    family: DenseFamily | None
    model_type: str
    architecture: str
    hidden_size: int
    ffn_size: int
    layers: int
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    attention_bias: str
    qk_norm: str
    windows: tuple[int | None, ...]
    rotated: tuple[bool, ...]
    rotary_share: float
    tied: bool
    mlp: MlpLayout
    config: dict[str, Any]

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary parameters without those that only the source's class reads."""
        return {key: value for key, value in self.config["rope_parameters"].items() if key not in _OWN_ROPE}


@dataclass(frozen=True)
class ExpertNames:
    """Names of one set of gated projections on disk, relative to the decoder layer; `{e}` is the expert's index.

    Either `gate_up` (one matrix, gate rows first) or `gate` and `up`. A name without `{e}` in a routed set is a stack
    over experts.
    """

    down: str
    gate_up: str | None = None
    gate: str | None = None
    up: str | None = None

    @classmethod
    def projections(cls, stem: str) -> ExpertNames:
        """The names that most classes have: `gate_proj`, `up_proj` and `down_proj` under a module."""
        return cls(gate=f"{stem}.gate_proj.weight", up=f"{stem}.up_proj.weight", down=f"{stem}.down_proj.weight")


@dataclass(frozen=True)
class MoeNames:
    """Names of the MoE's tensors, relative to the decoder layer. `memory_*` are those of the class once loaded.

    In memory every stock class keeps stacks: `gate_up_proj [E, 2I, D]`, `down_proj [E, D, I]`. The selection bias is
    [E], or [1, E] if `selection_bias_row`; its name in memory is the one on disk if `memory_selection_bias` is None.
    """

    router: str
    memory_router: str
    experts: ExpertNames
    memory_experts: str
    shared: ExpertNames | None = None
    shared_gate: str | None = None
    selection_bias: str | None = None
    memory_selection_bias: str | None = None
    selection_bias_row: bool = False


@dataclass(frozen=True)
class MoeSizes:
    """The sizes of a request: E experts of width I, K per token, a shared expert of width W (0: none).

    `dense_width` is the source's F, `dense_layers` the indices of the layers that stay dense. `gate_scale`: gates are
    this times the sigmoid of their logits; None: they are renormalised to sum to 1.
    """

    experts: int
    top_k: int
    width: int
    shared_width: int
    dense_width: int
    dense_layers: list[int]
    gate_scale: float | None = None

    @property
    def gates(self) -> dict[str, Any]:
        """The settings of the gates that most classes with sigmoid scores have."""
        return {
            "norm_topk_prob": self.gate_scale is None,
            "routed_scaling_factor": 1.0 if self.gate_scale is None else self.gate_scale,
        }


LLAMA_CPP_ROPE = ("default", "linear", "yarn")  # the kinds of rotary scaling that it has for every class


@dataclass(frozen=True)
class Support:
    """What an engine computes of an MoE class. A model that differs in one of these gives other logits there, or fails.

    Attributes:
        name: the engine's own name of the class, where it has one.
        normalises: whether the chosen gates are renormalised to sum to 1: always, never, or (None) as the config says.
        scores: the only scores that it computes, where the class has a choice; None: all.
        own_head: the output head must be a separate tensor: `tie_word_embeddings` is ignored.
        untied: the output head may be a separate tensor.
        selection_bias: the bias that affects only the choice of experts is used.
        windows: sliding windows are used.
        mixed_windows: some layers may have a window and others none.
        rope: kinds of rotary scaling; None: all.
        free_head_dim: the head width may differ from hidden size / heads.
        free_kv_heads: there may be fewer key heads than query heads.
        attention_bias: projections may have biases.
        shared: there may be a shared expert.
        dense_layers: some layers may be dense.
        last_dense: the last layers may be dense.
        activations: of the experts; None: any.
        plain_ffn: experts may have no gate, or biases.
        eps: the only supported epsilon of the norms; None: any.
        lone_gate: the gate of a single chosen expert (K = 1) is renormalised, too.
        divides_by_gate: sigmoid(g) of the shared expert's gate is computed as silu(g) / g, NaN at g = 0.
        needs: what the user has to add, e.g. an option.
    """

    name: str = ""
    normalises: bool | None = None
    scores: str | None = None
    own_head: bool = False
    untied: bool = True
    selection_bias: bool = True
    windows: bool = True
    mixed_windows: bool = True
    rope: tuple[str, ...] | None = None
    free_head_dim: bool = True
    free_kv_heads: bool = True
    attention_bias: bool = True
    shared: bool = True
    dense_layers: bool = True
    last_dense: bool = True
    activations: tuple[str, ...] | None = None
    plain_ffn: bool = True
    eps: float | None = None
    lone_gate: bool = True
    divides_by_gate: bool = False
    needs: str = ""


@dataclass(frozen=True)
class MoeTarget:
    """A native MoE class: what it can express, what it calls things, and where it runs.

    Attributes:
        name: our name, equal to the model type.
        architecture: transformers' class.
        names: names in memory and on disk.
        config: this class's own settings; the common ones are copied from the source.
        twin: the dense class of which this is the MoE form: all its settings are copied from the source. None: only
            those that every Llama-like class has.
        adapt: what makes the tensors of any source fit this class.
        dense: from the MoE's settings, the dense class that it is without its experts; None: the twin, or none.
        attention_bias: which of a source's attention biases it can carry.
        zero_biases: source's attention bias -> projections that get a bias of zeros, since this class has one there.
        windows: "none", "global" or "layers", as in `DenseFamily`.
        unrotated: layers without rotary positions are possible.
        partial_rotary: only the first part of each head may rotate.
        multipliers: it has Granite's multipliers.
        shared: "never", "optional" or "required".
        shared_gated: the shared expert's output is multiplied by sigmoid(gate(x)), 1/2 at a zero gate.
        shared_multiple: the shared width must be a multiple of the expert width.
        shared_same: the shared width must be the expert width.
        dense_layers: which layers may stay dense: "none", "any", "prefix" or "ends" (the first and the last ones).
        scoring: "softmax" or "sigmoid"; every target renormalises the chosen gates to sum 1 if asked to.
        scoring_key: the config's key of it, if there is a choice.
        renormalises: it always does so, whatever the config says.
        independent_gates: its gates may be a constant times the sigmoid of their logits.
        gate_epsilon: added to the sum of the chosen scores that they are divided by.
        averages: the config's key whose value "average" halves the sum of routed and shared output; None: no such key.
        count, top_k: the config's keys of the numbers of experts and of experts per token.
        min_experts: the fewest experts its router works with.
        own_tokenizer: as in `DenseFamily`.
        engines: what each engine other than transformers computes of it; an engine that is left out cannot run it.
    """

    name: str
    architecture: str
    names: MoeNames
    config: Callable[[DenseSpec, MoeSizes], dict[str, Any]]
    attention_bias: tuple[str, ...] = ("none", "qkv", "qkvo", "other")
    twin: str | None = None
    adapt: Callable[[DenseSpec], Adaptation] | None = None
    dense: Callable[[dict[str, Any]], DenseForm] | None = None
    zero_biases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    windows: str = "none"
    unrotated: bool = False
    partial_rotary: bool = False
    multipliers: bool = False
    shared: str = "never"
    shared_gated: bool = False
    shared_multiple: bool = False
    shared_same: bool = False
    dense_layers: str = "none"
    scoring: str = "softmax"
    scoring_key: str | None = None
    renormalises: bool = False
    independent_gates: bool = False
    gate_epsilon: float = 0.0
    averages: str | None = None
    count: str = "num_experts"
    top_k: str = "num_experts_per_tok"
    min_experts: int = 1
    own_tokenizer: bool = False
    engines: Mapping[str, Support] = field(default_factory=dict)
