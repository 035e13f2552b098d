"""Add an expert to an MoE while preserving its function.

Where the gates of the chosen experts sum to 1, the function is preserved if no choice changes, or no choice matters.

- A class with a selection bias (Glm4Moe, generic): scores lie within 0 and 1, so an expert whose bias is more than 1
  below the lowest is never among the K best. Training with loss-free balancing brings it in. But where scores are
  shares (softmax), the new one's share makes the others smaller next to their biases: these must be equal.
- One expert per token (K = 1): a copy with the same router row ties with its original, with equal outputs; any
  other expert gets the mean of the rows, whose logit, a mean of logits, never exceeds the largest.
- All experts are the same: another copy changes nothing, whichever experts are chosen.
- K > 1 without a bias: no row works. A logit w x below the K-th largest for every x, and so for -x, would need w to
  have Tukey depth K among the rows, and rows in general position have none deeper than 1. So the model becomes the
  generic one, which computes the same function and has a bias.
- Gates that are not renormalised, a trained gate on the shared expert, or softmax with unequal biases: none works. The
  row then points away from what the router's inputs have in common, so that text rarely chooses it; this is measured,
  not promised.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolmoe.core.checkpoint import Checkpoint, open_checkpoint
from smolmoe.core.claim import Claim
from smolmoe.core.model_code import AUTO_MAP
from smolmoe.errors import RequestError
from smolmoe.families import MOE_TARGETS
from smolmoe.families.forms import DenseForm
from smolmoe.families.spec import read_spec
from smolmoe.surgery.experts.dense_config import dense_form
from smolmoe.surgery.experts.extract import constant_factors
from smolmoe.surgery.experts.merge import refuse_split
from smolmoe.surgery.experts.moe_files import MoeFiles
from smolmoe.surgery.experts.subset import SOURCE, Computed, Program, refuse_capacity, whole, without_groups
from smolmoe.surgery.sources import source_tensors
from smolmoe.surgery.tensors.program import Block, OutTensor, Read
from smolmoe.surgery.tensors.tokenizer import same_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

DENSE = "dense"
BELOW = 1.5  # scores differ by less than 1
Method = Literal["bias", "same row", "mean row", "copies", "generic", "away"]

_REASONS: dict[Method, str] = {
    "bias": "The new expert's selection bias keeps it below every other expert's score, so no token chooses it until "
    "training raises the bias.",
    "same row": "Each token goes to one expert. The new one ties with its original, and both give the same output.",
    "mean row": "Each token goes to one expert. The new one's logit is the mean of the others', which never exceeds "
    "the largest.",
    "copies": "All experts are the same and the gates sum to 1, so it does not matter which are chosen.",
    "generic": "Without a selection bias no router row keeps an expert out of the K best for every input, so the model "
    "was converted to the generic one, an equivalent. There the new expert's bias keeps it below every other's "
    "score.",
    "away": "In this model any additional expert can change the output. The new one's router row points away from what "
    "the router's inputs have in common, so text rarely chooses it; the effect is measured, not promised.",
}


@dataclass(frozen=True)
class NewExpert:
    """Where the new expert's FFN comes from: layer -> part ("gate", "down_bias", ...) -> block of the program."""

    ffn: Mapping[int, Mapping[str, Block]]
    sources: Mapping[str, Checkpoint]
    copy_of: int | None


def copied(files: MoeFiles, expert: int) -> NewExpert:
    """A copy of one of the model's own experts."""
    blocks = {
        index: {part: Block(files.parts.tensors[name].shape, (Read(SOURCE, name),)) for part, name in ffn.items()}
        for index, ffn in ((index, layer.experts[expert]) for index, layer in files.layers.items())
    }
    return NewExpert(blocks, {}, expert)


def from_dense(files: MoeFiles, dense: str | Path) -> NewExpert:
    """The FFNs of a dense model: a specialist.

    Raises:
        RequestError: its FFNs differ from the experts in shape or activation, or it has a different number of layers or
            tokenizer.
        SourceError, CheckpointError: not a readable dense model.
    """
    checkpoint = open_checkpoint(dense, field="dense")
    source = source_tensors(checkpoint, read_spec(checkpoint.folder), "dense")
    spec = source.spec
    mlp = spec.mlp
    first = next(iter(files.layers.values())).experts[0]
    hidden, width = files.parts.tensors[first["down"]].shape
    config = files.config.get("text_config", files.config)
    ours: dict[str, Any] = {
        "hidden size": hidden,
        "FFN width": width,
        "layers": config.get("num_hidden_layers", config.get("n_layer")),
        "vocabulary": config["vocab_size"],
        "activation": files.setting("hidden_act"),
        "gated FFN": "gate" in first,
        "FFN biases": "down_bias" in first,
    }
    theirs = (spec.hidden_size, spec.ffn_size, spec.layers, spec.vocab_size, mlp.activation, mlp.gated, mlp.bias)
    for (what, mine), other in zip(ours.items(), theirs, strict=True):
        if mine != other:
            raise RequestError(
                f"its {what} is {other}, the experts' {mine}.",
                field="dense",
                value=str(dense),
                fix="Use a dense model of the same shape as the one the MoE was made from.",
            )
    for said in same_tokenizer(checkpoint.folder, files.folder, field=DENSE, owner="MoE"):
        logger.warning("%s", said)
    # OLMo 1's LayerNorms subtract the mean of what an FFN adds to the residual stream; RMSNorms do not.
    centres = spec.family is not None and spec.family.centred and config.get("model_type") != spec.model_type
    blocks: dict[int, dict[str, Block]] = {}
    for layer in files.layers:
        blocks[layer] = {}
        for tail, kind in (("", "weight"), ("_bias", "bias")) if mlp.bias else (("", "weight"),):
            for part, slot in (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)):
                if slot is None:
                    continue
                read = Read(DENSE, source.tensors[source.slot_name(layer, slot, kind)].disk_name)
                span = None if slot.half is None else (slot.half * width, (slot.half + 1) * width)
                shape = (hidden, width) if part == "down" else (width, hidden)
                if tail:
                    blocks[layer][part + tail] = Block(shape[:1], (read,), span=span)
                else:
                    centred = 0 if part == "down" and centres else None
                    blocks[layer][part] = Block(shape, (read,), span=span, transposed=mlp.transposed, centred=centred)
    return NewExpert(blocks, {DENSE: checkpoint}, None)


def choose_method(files: MoeFiles, new: NewExpert) -> Method:
    """The first method of adding an expert that preserves the function; "away" if no method does."""
    softmax_sum = not files.sigmoid and not files.renormalises  # gates are shares of all experts' scores
    if softmax_sum or files.config.get("router_top_p") is not None:
        return "away"
    if files.kind in MOE_TARGETS and MOE_TARGETS[files.kind].names.selection_bias:
        return "bias" if files.sigmoid or files.equal_biases else "away"
    if files.top_k == 1:
        return "mean row" if new.copy_of is None else "same row"
    if new.copy_of is not None and files.all_copies:
        return "copies"
    return "generic" if files.kind != "olmoe" and constant_factors(files) is not None else "away"


def add_claim(method: Method) -> Claim:
    """The claim for the larger MoE, compared with the MoE it is made from."""
    return Claim("none" if method == "away" else "exact", _REASONS[method])


def added(
    files: MoeFiles,
    new: NewExpert,
    method: Method,
    *,
    name: str | None = None,
    away: Mapping[int, Tensor] | None = None,
) -> Program:
    """The program of the MoE with one more expert at the end.

    Args:
        files: the MoE.
        new: the expert's FFN.
        method: from `choose_method`.
        name: the expert's name; None for an automatic one.
        away: MoE layer -> router row [D] that points away from its inputs, for "away".

    Raises:
        RequestError: shards of split FFNs, or routing that is limited to groups or by capacity.
        TargetError: the class has no generic form.
    """
    refuse_split(files, "added")
    refuse_capacity(files)
    adding = _Adding(files, new, method, away or {})
    tensors = tuple(adding.generic() if method == "generic" else adding.native())
    config = adding.generic_config() if method == "generic" else files.resized(files.experts + 1, files.top_k)
    config |= without_groups(files)
    if files.names is not None or name is not None:
        config |= {"expert_names": [*(files.names or (None,) * files.experts), name]}
    return Program(config, tensors, {SOURCE: files.parts, **new.sources}, Computed(adding.makers))


@dataclass
class _Adding:
    files: MoeFiles
    new: NewExpert
    method: Method
    away: Mapping[int, Tensor]
    makers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    # -- the same class --------------------------------------------------------------------------------------------

    def native(self) -> Iterator[OutTensor]:
        """All tensors unchanged, except one more row in the router and the stacks, plus the new expert's tensors."""
        files, seen = self.files, set()
        for name in files.checkpoint.tensors:
            layer = files.layer_of(name)
            if name in files.stacks:
                yield self._grown(name, files.stacks[name])
            else:
                yield whole(files, name, role="expert" if name in files.owner else "kept")
            if layer is not None and layer not in seen:
                seen.add(layer)
                yield from self._separate(layer)

    def _separate(self, layer: int) -> Iterator[OutTensor]:
        for part, name in self.files.layers[layer].experts[0].items():
            if name in self.files.owner:
                before, after = name.rsplit("experts.0.", 1)
                out = f"{before}experts.{self.files.experts}.{after}"
                block = self.new.ffn[layer][part]
                yield OutTensor(out, out, (), block.shape, self.files.parts.dtype(name), "expert", (block,))

    def _grown(self, name: str, layer: int) -> OutTensor:
        info, found = self.files.parts.tensors[name], self.files.layers[layer]
        shape = self.files.stored(name, (info.shape[0] + 1, *info.shape[1:]))
        kept = Block(info.shape, (Read(SOURCE, name),))
        is_router = name in (found.router, found.selection_bias)
        if is_router:
            more = [self._row(layer) if name == found.router else self._bias(layer, name)]
        else:
            parts = [part for part, of in found.experts[0].items() if of.startswith(f"{name}[0]")]
            more = [self.new.ffn[layer][part] for part in sorted(parts, key=_GATE_FIRST.index)]
        role: Any = "router" if is_router else "expert"
        return OutTensor(name, name, (), shape, self.files.parts.dtype(name), role, (kept, *more))

    def _row(self, layer: int) -> Block:
        """The new expert's router row [1, D]."""
        router = self.files.layers[layer].router
        shape = (1, self.files.parts.tensors[router].shape[1])
        if self.method == "away":
            return self._made(f"{router}[new]", shape, lambda: self.away[layer][None])
        if self.new.copy_of is not None:
            return Block(shape, (Read(SOURCE, router),), span=(self.new.copy_of, self.new.copy_of + 1))
        return self._made(f"{router}[new]", shape, partial(_mean_row, self.files.parts, router))

    def _bias(self, layer: int, name: str) -> Block:
        if self.method == "away":
            return Block((1,))
        return self._made(f"{name}[new]", (1,), partial(_below_all, self.files.parts, name))

    def _made(self, stream: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Block:
        self.makers[stream] = make
        return Block(shape, fill="rows", stream=stream)

    # -- the generic model -----------------------------------------------------------------------------------------

    def generic_config(self) -> dict[str, Any]:
        """The generic model's config: the dense class with the MoE's attention and norms, and its experts."""
        files, form = self.files, self._form
        first = next(iter(files.layers.values()))
        width = files.parts.tensors[first.experts[0]["down"]].shape[1]
        shared = files.parts.tensors[first.shared["down"]].shape[1] if first.shared else 0
        key = form.width_key or "intermediate_size"
        text = form.config | {key: int(form.config.get(key) or files.setting("intermediate_size") or width)}
        return {
            "architectures": ["SmolMoeForCausalLM"],
            "model_type": "smolmoe",
            "dtype": form.config.get("dtype"),
            "transformers_version": form.config["transformers_version"],
            "auto_map": dict(AUTO_MAP),
            **{k: text[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")},
            "output_router_logits": False,
            "text_config": text,
            "layers_module": form.mlp.layers,
            "mlp_module": form.mlp.module,
            "gated": True,
            "mlp_bias": False,
            "hidden_act": text["hidden_act"],
            "mlp_dropout": 0.0,
            "moe_layers": list(files.layers),
            "num_experts": files.experts + 1,
            "num_experts_per_tok": files.top_k,
            "moe_intermediate_size": width,
            "shared_expert_intermediate_size": shared,
            "scoring_func": "sigmoid" if files.sigmoid else "softmax",
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            **{key: files.config[key] for key in ("expert_layers",) if key in files.config},
        }

    @property
    def _form(self) -> DenseForm:
        return dense_form(self.files)

    def generic(self) -> Iterator[OutTensor]:
        """The tensors of the equivalent generic model, with the new expert."""
        form = self._form
        for part in self.files.in_order():
            if not isinstance(part, str):
                yield from self._generic_layer(part, f"lm.{form.mlp.layers}.{part}.{form.mlp.module}.")
            elif not part.endswith(form.dropped):
                yield whole(self.files, part, f"lm.{part}")
                if part.endswith("q_proj.weight"):
                    yield from self._zero_biases(part, form)

    def _zero_biases(self, name: str, form: DenseForm) -> Iterator[OutTensor]:
        stem = name.removesuffix("q_proj.weight")
        for projection in form.zero_biases:
            shape = self.files.parts.tensors[f"{stem}{projection}.weight"].shape[:1]
            out = f"lm.{stem}{projection}.bias"
            yield OutTensor(out, out, (), shape, self.files.parts.dtype(name), "new", (Block(shape),))

    def _generic_layer(self, layer: int, stem: str) -> Iterator[OutTensor]:
        parts, found = self.files.parts, self.files.layers[layer]
        count, dtype = self.files.experts + 1, parts.dtype(found.experts[0]["down"])
        hidden, width = parts.tensors[found.experts[0]["down"]].shape

        def out(name: str, shape: tuple[int, ...], role: Any, *blocks: Block, of: str = dtype) -> OutTensor:
            return OutTensor(stem + name, stem + name, (), shape, of, role, blocks)

        rows = Block(parts.tensors[found.router].shape, (Read(SOURCE, found.router),))
        yield out("gate.weight", (count, hidden), "router", rows, self._row(layer), of=parts.dtype(found.router))
        low = self._made(f"{stem}bias[new]", (1,), partial(_constant, -BELOW))
        yield out("gate.e_score_correction_bias", (count,), "router", Block((count - 1,)), low, of="float32")
        own = [{part: _block(parts, name) for part, name in ffn.items()} for ffn in found.experts]
        ffns = [*own, self.new.ffn[layer]]
        inner = [ffn[part] for ffn in ffns for part in ("gate", "up")]
        yield out("experts.gate_up_proj", (count, 2 * width, hidden), "expert", *inner)
        down = [replace(ffn["down"], scale=self.files.gate_scale) for ffn in ffns]
        yield out("experts.down_proj", (count, hidden, width), "expert", *down)
        if found.shared:
            wide = parts.tensors[found.shared["down"]].shape[1]
            both = (_block(parts, found.shared["gate"]), _block(parts, found.shared["up"]))
            yield out("shared_expert.gate_up_proj.weight", (2 * wide, hidden), "shared", *both)
            # A gate of zeros halves the shared expert; the generic model has no such gate.
            scale = self.files.shared_scale * (0.5 if found.shared_gate else 1.0)
            joined = _block(parts, found.shared["down"], scale)
            yield out("shared_expert.down_proj.weight", (hidden, wide), "shared", joined)


_GATE_FIRST = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")


def _block(parts: Checkpoint, name: str, scale: float = 1.0) -> Block:
    return Block(parts.tensors[name].shape, (Read(SOURCE, name),), scale=scale)


def _mean_row(parts: Checkpoint, router: str) -> Tensor:
    return parts.read(router).float().mean(0, keepdim=True)


def _below_all(parts: Checkpoint, bias: str) -> Tensor:
    return parts.read(bias).float().min()[None] - BELOW


def _constant(value: float) -> Tensor:
    import torch

    return torch.tensor([value])
