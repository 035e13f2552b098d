"""FLOPs of a causal language model: counted while it computes, and expected from the sizes of its matrices.

torch's counter counts grouped products, and attention on the CPU, as 0; here they have formulas. A product of [m, k]
and [k, n] is 2*m*k*n, and nothing else counts. Attention is counted over all pairs of positions, as torch counts its
kernels: a causal kernel computes half of them in a prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import flop_counter

from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.routing import RoutingCapture, find_routers
from smolmoe.moe.structure import expert_parameters, ffn_parts, find_layers
from smolmoe.results.flops import ExpertWork, FlopCounts, Flops, TrainFlops

# The parts of a model: projections around attention, attention itself, FFNs of layers without experts, the output
# head, ...; "rest" is what is in none of these modules.
PARTS = ("attention", "scores", "router", "experts", "shared", "ffn", "head", "rest")
_BACKWARD = {"scores": 2.5}  # times the forward pass; others 2. The backward pass computes the scores again


def count_flops(model: Any, *, length: int = 128, train: bool = True, seed: int = 0) -> FlopCounts:
    """Count the FLOPs per token, on random tokens.

    Everything is computed, nothing is estimated, so that the count also shows which experts computed. Products use
    another dtype than the weights, whose kernels may bypass torch, where nothing is counted.

    Args:
        model: a causal LM of transformers in memory, dense or MoE; it is not changed.
        length: of the prompt, in tokens; one more token is decoded after it.
        train: count a backward pass too. Gradients are dropped one by one.

    Raises:
        RequestError: `length` is below 2 or beyond the model's positions.
        SourceError: a router whose choices cannot be read, or a class that torch's counter does not support.
    """
    config = model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", None)
    if length < 2 or (room is not None and length >= room):
        limit = "of at least 2" if length < 2 else f"below the model's {room} positions"
        raise RequestError("out of range.", field="length", value=length, fix=f"Use a length {limit}.")
    ids = torch.randint(config.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(seed))
    ids = ids.to(model.get_input_embeddings().weight.device)
    try:
        with _evaluated(model):
            sizes, prefill, decode = _forward(model, ids)
            read, written = _flops(sizes, prefill, length, length), _flops(sizes, decode, 1, length + 1)
            learned = _train(model, ids[:, :length], read) if train else None
    except AssertionError as error:  # of torch's module hooks, which do not support DBRX's experts
        raise SourceError(
            f"torch's FLOP counter does not support this class ({error}).", field="model", value=type(model).__name__
        ) from error
    return FlopCounts(read, written, learned, _work(sizes, read, written, learned))


@contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    dtype = torch.float16 if model.dtype == torch.bfloat16 else torch.bfloat16
    try:
        with torch.autocast(model.device.type, dtype):
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Sizes:
    """Elements of the matrices by part, the modules of each part, and E and K."""

    modules: dict[str, str]  # module's name -> part
    elements: dict[str, int]
    attended: int  # elements per attended position, over all layers
    experts: int
    top_k: int

    def expected(self, positions: float) -> dict[str, float]:
        """FLOPs per token that attends to `positions`."""
        products = {part: 2.0 * count for part, count in self.elements.items()}
        if "experts" in products:
            products["experts"] *= self.top_k / self.experts
        return {"scores": 2.0 * self.attended * positions, **products}


def _forward(model: Any, ids: torch.Tensor) -> tuple[_Sizes, _Count, _Count]:
    """A prefill of all tokens except the last, and the last decoded after it."""
    chosen = (0, 0)
    with torch.no_grad():
        if find_routers(model):
            with RoutingCapture(model) as capture:
                cache, prefill = _counted(model, ids[:, :-1], None)
            routing = capture.routing(capture.layers[0])
            chosen = (routing.experts, routing.top_k)
        else:
            cache, prefill = _counted(model, ids[:, :-1], None)
        _, decode = _counted(model, ids[:, -1:], cache)
    return _sizes(model, *chosen), prefill, decode


_Count = dict[str, dict[Any, int]]


def _counted(model: Any, ids: torch.Tensor, cache: Any) -> tuple[Any, _Count]:
    with counter() as count:
        out = model(input_ids=ids, cache=cache, use_cache=True)
    if out.get("cache") is None:
        raise SourceError(
            "the model keeps no KV cache, so it cannot decode single tokens.", field="model", value=type(model).__name__
        )
    return out.cache, count.get_flop_counts()


def _train(model: Any, ids: torch.Tensor, prefill: Flops) -> TrainFlops:
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    held = {name: parameter.grad for name, parameter in model.named_parameters()}
    hooks = []
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
            hooks.append(parameter.register_post_accumulate_grad_hook(_drop))
        with torch.enable_grad(), counter() as count:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            with torch.autocast(model.device.type, enabled=False):  # otherwise a backward pass may mix both dtypes
                loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
            parameter.grad = held[name]
    length = ids.shape[1]
    expected = sum(value * (1 + _BACKWARD.get(part, 2)) for part, value in prefill.parts.items())
    return TrainFlops(length, count.get_total_flops() / length, expected)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _flops(sizes: _Sizes, count: _Count, tokens: int, positions: int) -> Flops:
    found = dict.fromkeys(PARTS, 0.0)
    for name, part in sizes.modules.items():
        for operation, flops in count.get(name, {}).items():
            is_score = part == "attention" and operation in _SCORES
            found["scores" if is_score else part] += flops / tokens
    found["rest"] = sum(count.get("Global", {}).values()) / tokens - sum(found.values())
    expected = sizes.expected(positions)
    return Flops(positions, {part: value for part, value in found.items() if value or part in expected}, expected)


def _work(sizes: _Sizes, read: Flops, written: Flops, train: TrainFlops | None) -> ExpertWork | None:
    if "experts" not in sizes.elements:  # a dense model, or experts whose matrices were not found
        return None
    one = 2.0 * sizes.elements["experts"] / sizes.experts
    prefill, decode = (flops.parts.get("experts", 0.0) / one for flops in (read, written))
    # The FLOPs of the backward pass beyond those of the other parts are the experts'.
    learned = None if train is None else prefill + (train.total - train.expected_total) / (3 * one)
    return ExpertWork(sizes.experts, sizes.top_k, prefill, decode, learned)


def _sizes(model: Any, experts: int, top_k: int) -> _Sizes:
    root = type(model).__name__
    names = {id(module): f"{root}.{name}" for name, module in model.named_modules()}
    routers = dict(find_routers(model))
    modules: dict[str, str] = {}
    elements: dict[str, int] = {}

    def take(module: nn.Module, part: str, *, whole: bool) -> None:
        found = module.named_parameters(recurse=whole)
        count = sum(p.numel() for name, p in found if p.ndim >= 2 and not name.endswith("bias"))  # stacks of biases
        if count:
            modules[names[id(module)]] = part
            elements[part] = elements.get(part, 0) + count

    for index, layer in enumerate(find_layers(model)[1]):
        ffn = ffn_parts(layer)
        for child in layer.children():
            if child not in ffn:
                take(child, "attention", whole=True)
        for part in ffn:
            for module, name in _ffn_modules(layer, part, routers.get(index), experts):
                take(module, name, whole=False)
    head = model.get_output_embeddings()
    if head is not None:
        take(head, "head", whole=True)
    return _Sizes(modules, elements, _attended(model), experts, top_k)


def _ffn_modules(
    layer: nn.Module, part: nn.Module, router: nn.Module | None, experts: int
) -> Iterator[tuple[nn.Module, str]]:
    """The modules of an FFN that own matrices, and the part of each."""
    if router is None:
        yield from ((module, "ffn") for module in part.modules())
        return
    routed = {name.rpartition(".")[0] for name in expert_parameters(layer, router, experts)}
    routing = set(router.modules())
    for name, module in part.named_modules():
        inside = any(name == one or name.startswith(f"{one}.") for one in routed)
        yield module, "router" if module in routing else "experts" if inside else "shared"


def _attended(model: Any) -> int:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key = getattr(config, "qk_head_dim", None) or size
    value = getattr(config, "v_head_dim", None) or size
    return int(heads * (key + value) * len(find_layers(model)[1]))


def counter() -> flop_counter.FlopCounterMode:
    """torch's counter, with formulas for operators that it lacks."""
    return flop_counter.FlopCounterMode(display=False, custom_mapping=_formulas())


def _formulas() -> dict[Any, Callable[..., int]]:
    import transformers.integrations.moe  # noqa: F401  # defines their operators

    aten, theirs = torch.ops.aten, torch.ops.transformers
    return {
        aten._grouped_mm: _raw(_grouped),
        theirs.grouped_mm_fallback: _raw(_grouped),
        theirs.grouped_mm_fallback_backward: _raw(_grouped_backward),
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    formula._get_raw = True  # type: ignore[attr-defined]  # takes tensors, not shapes: the numbers of rows are values
    return formula


def _grouped(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, *_: Any, **__: Any) -> int:
    """One product per group; rows after the last group belong to none."""
    if offs is None:
        return 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
    rows = int(offs[-1]) if offs.numel() else 0
    if a.ndim == 2 and b.ndim == 3:
        return 2 * rows * a.shape[1] * b.shape[2]
    if a.ndim == 2:
        return 2 * a.shape[0] * rows * b.shape[1]
    return 2 * a.shape[1] * a.shape[2] * rows


def _grouped_backward(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * _grouped(a, b, offs)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_backward_flop_count(grad, query, key, value)


_SCORES = {
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
    torch.ops.aten._flash_attention_forward,
    torch.ops.aten._efficient_attention_forward,
}
