"""A Mixture-of-Experts around any dense causal language model of transformers, in one self-contained file.

The dense model is built unchanged; in each chosen layer a router, E experts of the same kind and, if requested, a
shared expert replace the feed-forward network (FFN). Every checkpoint carries a copy of this file as
`modeling_smolmoe.py`, so it loads with only torch and transformers:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Shapes: B batch, S sequence, T = B*S tokens, D hidden size, I expert width, W shared width, E experts, K per token.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging
from transformers.utils.output_capturing import OutputRecorder

logger = logging.get_logger(__name__)

CODE_FILE = "modeling_smolmoe.py"
# transformers 5.24 renamed it; it is passed on under the name that the installed version uses.
CACHE_NAMES = ("cache", "past_key_values")
AUTO_MAP = {
    "AutoConfig": "modeling_smolmoe.SmolMoeConfig",
    "AutoModel": "modeling_smolmoe.SmolMoeModel",
    "AutoModelForCausalLM": "modeling_smolmoe.SmolMoeForCausalLM",
}


class SmolMoeConfig(PreTrainedConfig):
    """What the dense model is (`text_config`), where its FFNs are, and what the MoE in their place looks like.

    Attributes:
        text_config: the dense model's config. Its settings can be read here too, so that caches, tools and serving
            engines find one config with the sizes of the dense model and those of the MoE.
        layers_module, mlp_module: paths of the decoder layers in the dense model and of the FFN inside a layer.
        gated: an FFN is down(act(gate(x)) * up(x)) rather than down(act(up(x))).
        mlp_bias, hidden_act, mlp_dropout: biases, activation (a key of ACT2FN) and dropout after the FFN.
        moe_layers: the layers whose FFN is an MoE; all where not given.
        num_experts (E), num_experts_per_tok (K), moe_intermediate_size (I; 0 for the dense width): routed experts.
        shared_expert_intermediate_size: width W of the expert that every token passes, ungated; 0 for none.
        scoring_func: "softmax" or "sigmoid" router scores; norm_topk_prob makes the K chosen ones sum to 1;
            they are multiplied by routed_scaling_factor.
        router_top_p: dynamic top-k (arXiv 2403.07652): of the K experts, in order of choice, only as many as it takes
            for their probabilities to reach this; the others get weight 0. None for always K. (Not called `top_p`,
            which transformers would take for a setting of text generation.)
        capacity_factor: an expert takes at most ceil(factor * T * K / E) choices of a forward pass, those of the first
            tokens of the batch; the others get weight 0 and nothing is renormalised (arXiv 2101.03961). None for no
            limit. It acts in training and in use alike, so that both are the same model; but what a token gives then
            depends on the other sequences of its batch, on padding, and on whether a KV cache hides earlier tokens.
        router_aux_loss_coef, output_router_logits: weight of the load-balancing loss, and whether it is computed.

    Raises:
        ValueError: for a value out of its range.
    """

    model_type = "smolmoe"
    sub_configs = {"text_config": AutoConfig}

    text_config: Any = None
    layers_module: str = "model.layers"
    mlp_module: str = "mlp"
    gated: bool = True
    mlp_bias: bool = False
    hidden_act: str = "silu"
    mlp_dropout: float = 0.0
    moe_layers: list[int] | None = None
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    scoring_func: str = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    router_top_p: float | None = None
    capacity_factor: float | None = None
    router_aux_loss_coef: float = 0.001
    output_router_logits: bool = False
    tie_word_embeddings: bool | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):
            dense = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(dense.pop("model_type", "llama"), **dense)
        for name in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.text_config, name, None))
        if self.moe_layers is None:
            self.moe_layers = list(range(self.text_config.num_hidden_layers))
        if not self.moe_intermediate_size:
            self.moe_intermediate_size = getattr(self.text_config, "intermediate_size", 0)
        self._check(set(range(self.text_config.num_hidden_layers)))
        super().__post_init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        """A setting of the dense model, where the MoE has none of this name."""
        dense = self.__dict__.get("text_config")
        if dense is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(dense, name)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """This config: engines look for the experts where they look for the sizes, and take others for multimodal."""
        return self

    def _check(self, all_layers: set[int]) -> None:
        layers = self.moe_layers or []
        ranges = {
            "num_experts": self.num_experts >= 1,
            "num_experts_per_tok": 1 <= self.num_experts_per_tok <= self.num_experts,
            "moe_intermediate_size": self.moe_intermediate_size >= 1,
            "shared_expert_intermediate_size": self.shared_expert_intermediate_size >= 0,
            "scoring_func": self.scoring_func in ("softmax", "sigmoid"),
            "routed_scaling_factor": 0 < self.routed_scaling_factor < math.inf,
            "router_top_p": self.router_top_p is None or 0 < self.router_top_p <= 1,
            "capacity_factor": self.capacity_factor is None or 0 < self.capacity_factor < math.inf,
            "hidden_act": self.hidden_act in ACT2FN,
            "mlp_dropout": 0 <= self.mlp_dropout < 1,
            "moe_layers": len(set(layers)) == len(layers) and set(layers) <= all_layers,
        }
        for name, valid in ranges.items():
            if not valid:
                raise ValueError(f"SmolMoeConfig: {name}={getattr(self, name)!r} is out of range.")

    def to_diff_dict(self) -> dict[str, Any]:
        """The whole config: a checkpoint must not change when a default of transformers does."""
        whole = self.to_dict() | {"auto_map": AUTO_MAP}
        for part in (whole, whole["text_config"]):
            part.pop("_name_or_path", None)  # do not record where it was loaded from
        return whole


class SmolMoeRouter(nn.Module):
    """Chooses K of E experts per token; in and out as every router of transformers."""

    def __init__(self, config: SmolMoeConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.routed_scaling_factor = config.routed_scaling_factor
        self.scoring_func = config.scoring_func
        self.top_p = config.router_top_p
        self.capacity_factor = config.capacity_factor
        self.hidden_dim = config.get_text_config().hidden_size
        self.weight = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim))
        self.e_score_correction_bias = nn.Buffer(torch.zeros(self.num_experts, dtype=torch.float32))
        self.logits_sink: list[torch.Tensor] | None = None
        self.register_forward_hook(_record_logits)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[..., D] -> logits [T, E], weights [T, K], chosen experts [T, K].

        Number types are those of the stock routers, so that the same weights route alike: softmax (Mixtral, Qwen3-MoE)
        has logits and weights in the input's type, sigmoid (GLM-4-MoE, DeepSeek-V3) works in fp32 throughout.
        """
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        if self.scoring_func == "sigmoid":
            logits = F.linear(hidden_states.float(), self.weight.float())
            scores = logits.sigmoid()
        else:
            logits = F.linear(hidden_states, self.weight)
            scores = logits.softmax(dim=-1, dtype=torch.float32)
        # The bias decides which experts are chosen, never their weights (arXiv 2408.15664).
        chosen = torch.topk(scores + self.e_score_correction_bias, self.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.top_p is not None:
            weights = weights * first_to_reach(self.top_p, weights / scores.sum(dim=-1, keepdim=True))
        if self.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        if self.routed_scaling_factor != 1:
            weights = weights * self.routed_scaling_factor
        if self.capacity_factor is not None:
            weights = weights * within_capacity(self.capacity_factor, chosen, weights != 0, self.num_experts)
        return logits, weights.to(logits.dtype), chosen


def first_to_reach(top_p: float, probabilities: torch.Tensor) -> torch.Tensor:
    """[T, K] bool: the fewest first slots whose probabilities [T, K] sum to `top_p`; all where they never do."""
    before = F.pad(probabilities.detach().cumsum(dim=-1), (1, -1))
    return before < top_p


def within_capacity(factor: float, chosen: torch.Tensor, used: torch.Tensor, num_experts: int) -> torch.Tensor:
    """[T, K] bool: the choices among the first ceil(factor * T * K / E) of their expert, in token order.

    `used` [T, K] bool: slots that are choices at all; the others do not use capacity.
    """
    capacity = math.ceil(factor * chosen.numel() / num_experts)
    queue = chosen.masked_fill(~used, num_experts).flatten()
    order = queue.argsort(stable=True)
    lengths = torch.zeros(num_experts + 1, dtype=torch.int64, device=queue.device)
    lengths.scatter_add_(0, queue, torch.ones_like(queue))
    starts = lengths.cumsum(0) - lengths
    place = torch.empty_like(queue)
    place[order] = torch.arange(len(queue), device=queue.device) - starts[queue[order]]
    return used & (place < capacity).view_as(chosen)


def _record_logits(router: SmolMoeRouter, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
    # A hook rather than a line in `forward`: recording still works if a router's forward is replaced.
    if router.logits_sink is not None:
        router.logits_sink.append(output[0])


@use_experts_implementation
class SmolMoeExperts(nn.Module):
    """E feed-forward networks as stacked weights, so that every `experts_implementation` of transformers runs them."""

    # Given by the decorator:
    has_gate: bool
    has_bias: bool
    _apply_gate: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, config: SmolMoeConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.get_text_config().hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.act_fn = ACT2FN[config.hidden_act]
        up, rows = ("gate_up_proj", 2 * self.intermediate_dim) if config.gated else ("up_proj", self.intermediate_dim)
        for name, n_out, n_in in ((up, rows, self.hidden_dim), ("down_proj", self.hidden_dim, self.intermediate_dim)):
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, n_out, n_in)))
            if config.mlp_bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(self.num_experts, n_out)))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, D], [T, K], [T, K] -> [T, D]: one expert at a time (`experts_implementation="eager"`)."""
        up = "gate_up_proj" if self.has_gate else "up_proj"
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, slot = torch.where(top_k_index == expert)
            hidden = self._project(up, hidden_states[token], expert)
            hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)
            hidden = self._project("down_proj", hidden, expert) * top_k_weights[token, slot, None]
            output.index_add_(0, token, hidden.to(output.dtype))
        return output

    def _project(self, name: str, x: torch.Tensor, expert: int) -> torch.Tensor:
        bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else None
        return F.linear(x, getattr(self, name)[expert], bias)


class SmolMoeSharedExpert(nn.Module):
    """The feed-forward network of width W that is applied to every token."""

    def __init__(self, config: SmolMoeConfig) -> None:
        super().__init__()
        hidden, width = config.get_text_config().hidden_size, config.shared_expert_intermediate_size
        self.act_fn = ACT2FN[config.hidden_act]
        self.gated = config.gated
        if config.gated:
            self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=config.mlp_bias)
        else:
            self.up_proj = nn.Linear(hidden, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, hidden, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]"""
        if not self.gated:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class SmolMoeBlock(nn.Module):
    """The replacement of a dense FFN: dropout(experts(x) + shared_expert(x))."""

    def __init__(self, config: SmolMoeConfig) -> None:
        super().__init__()
        self.gate = SmolMoeRouter(config)
        self.experts = SmolMoeExperts(config)
        # The decorator sets these per class, but one class serves every kind of FFN.
        self.experts.has_gate, self.experts.has_bias = config.gated, config.mlp_bias
        self.shared_expert = SmolMoeSharedExpert(config) if config.shared_expert_intermediate_size else None
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]"""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, chosen = self.gate(tokens)
        output = self.experts(tokens, chosen, weights).reshape(hidden_states.shape)
        if self.shared_expert is not None:
            output = output + self.shared_expert(hidden_states)
        return self.dropout(output)


def put_experts(model: nn.Module, config: SmolMoeConfig) -> None:
    """Put an MoE in the place of the FFN of each chosen layer.

    Raises:
        AttributeError: no such layer or FFN.
    """
    for layer in config.moe_layers or ():
        path = f"{config.layers_module}.{layer}.{config.mlp_module}"
        model.get_submodule(path)
        model.set_submodule(path, SmolMoeBlock(config))


class SmolMoeModel(PreTrainedModel):
    """The same without the head, for engines that bring their own (vLLM's and SGLang's Transformers backend).

    Parameters have the names that they have in `SmolMoeForCausalLM.lm`.
    """

    config_class = SmolMoeConfig
    base_model_prefix = "lm"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    def __init__(self, config: SmolMoeConfig) -> None:
        super().__init__(config)
        config.text_config._experts_implementation = "eager"
        self._backbone = config.layers_module.split(".")[0]
        self.add_module(self._backbone, AutoModel.from_config(config.text_config, dtype=torch.get_default_dtype()))
        put_experts(self, config)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The dense backbone's forward."""
        return self.get_decoder()(*args, **kwargs)

    def get_decoder(self) -> Any:
        return getattr(self, self._backbone)

    def get_input_embeddings(self) -> nn.Module:
        return self.get_decoder().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.get_decoder().set_input_embeddings(value)


class SmolMoeForCausalLM(PreTrainedModel, GenerationMixin):
    """The dense model `lm` with an MoE for its FFN in `config.moe_layers`. Everything else is the dense model's own."""

    config_class = SmolMoeConfig
    supports_gradient_checkpointing = True
    # The dense class inside checks its own support.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    _can_record_outputs = {"router_logits": OutputRecorder(SmolMoeRouter, index=0)}

    def __init__(self, config: SmolMoeConfig) -> None:
        super().__init__(config)
        if config.capacity_factor is not None:
            logger.warning_once(
                f"capacity_factor={config.capacity_factor}: a token's output depends on the other sequences of its "
                "batch, since each expert accepts a limited number of choices. The model is not causal across a "
                "batch; batched, padded and cached runs differ from a sequence alone."
            )
        # A choice of experts kernel is passed down to the dense config, whose class has no experts and would refuse it.
        config.text_config._experts_implementation = "eager"
        self.lm = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        put_experts(self.lm, config)
        self.accepts_loss_kwargs = getattr(self.lm, "accepts_loss_kwargs", True)
        self._is_stateful = self.lm._is_stateful
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        # Each PreTrainedModel initialises the modules inside it, and `lm` does not know ours: so ours go first.
        for module in self.modules():
            if isinstance(module, SmolMoeRouter | SmolMoeExperts):
                self._initialize_weights(module)
        super().initialize_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, SmolMoeRouter | SmolMoeExperts):
            super()._init_weights(module)
            return
        std = getattr(self.config.get_text_config(), "initializer_range", None) or 0.02
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            init.zeros_(tensor) if name.endswith("bias") else init.normal_(tensor, std=std)

    def routers(self) -> list[SmolMoeRouter]:
        """The routers, in the order of the layers."""
        return [module for module in self.lm.modules() if isinstance(module, SmolMoeRouter)]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """The dense model's forward; with `output_router_logits` also logits [T, E] per MoE layer and the aux loss."""
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "cache": cache,
            "inputs_embeds": inputs_embeds,
            "labels": labels,
            # The Trainer switches caching off on the outer config.
            "use_cache": use_cache if use_cache is not None else getattr(self.config, "use_cache", None),
        }
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            inputs["logits_to_keep"] = logits_to_keep
        router_logits = self._set_logits_sink([] if output_router_logits else None)
        try:
            out = self.lm(**{k: v for k, v in inputs.items() if v is not None}, **kwargs, return_dict=True)
        finally:
            self._set_logits_sink(None)
        loss, aux_loss = out.get("loss"), None
        if router_logits:
            aux_loss = self._load_balancing_loss(router_logits, attention_mask)
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=out.logits,
            hidden_states=out.get("hidden_states"),
            attentions=out.get("attentions"),
            router_logits=tuple(router_logits) if router_logits is not None else None,
            **{name: value for name, value in out.items() if name in CACHE_NAMES},
        )

    def _set_logits_sink(self, sink: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
        # Not transformers' `capture_outputs`: the dense model inside starts its own collection, without routers.
        for router in self.routers():
            router.logits_sink = sink
        return sink

    def _load_balancing_loss(self, router_logits: list[torch.Tensor], mask: Any) -> torch.Tensor:
        """E * sum_e f_e * P_e over the tokens of all layers, as stock classes compute it; K at perfect balance.

        f_e: choices of expert e per token; P_e: its mean score, scores of a token summing to 1. arXiv 2101.03961.
        """
        logits = torch.cat([layer.to(router_logits[0].device) for layer in router_logits]).float()
        if self.config.scoring_func == "sigmoid":
            logits = F.logsigmoid(logits)  # whose softmax is sigmoid scores divided by their sum (arXiv 2412.19437)
        probs = logits.softmax(dim=-1)
        hits = torch.zeros_like(probs).scatter(-1, probs.topk(self.config.num_experts_per_tok, dim=-1).indices, 1.0)
        keep = torch.ones_like(probs[:, :1])
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            length = router_logits[0].shape[0] // mask.shape[0]  # with a KV cache the mask covers past tokens as well
            keep = mask[:, -length:].reshape(-1, 1).to(keep).repeat(len(router_logits), 1)
        return self.config.num_experts * ((hits * keep).sum(0) * (probs * keep).sum(0)).sum() / keep.sum() ** 2

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves the model together with this file: a checkpoint always carries the code that its config names."""
        os.makedirs(save_directory, exist_ok=True)
        target = os.path.join(save_directory, CODE_FILE)
        if not (os.path.exists(target) and os.path.samefile(__file__, target)):
            shutil.copyfile(__file__, target)
        super().save_pretrained(save_directory, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return self.lm.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.lm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.lm.resize_token_embeddings(*args, **kwargs)

    def get_decoder(self) -> nn.Module:
        return self.lm.get_decoder()


__all__ = ["SmolMoeConfig", "SmolMoeForCausalLM", "SmolMoeModel"]
