"""The runs of a verification, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from smolmoe.core.devices import in_double
from smolmoe.moe.routing import Routing, RoutingCapture, find_routers
from smolmoe.moe.streaming import StreamedModel
from smolmoe.moe.structure import ffn_parts, find_layers
from smolmoe.results.verification import ExpertsReached
from smolmoe.verification.logits import Comparison, before_first_close_call, largest
from smolmoe.verification.sample import Side, padded, plain, real_positions
from smolmoe.verification.scope import Inputs

SIDES: tuple[Side, ...] = ("left", "right")
Step = Callable[[], None]  # called after each layer, or each decoded token
BySequence = dict[int, torch.Tensor]


@dataclass(frozen=True)
class Decoded:
    """Greedy decoding with a KV cache: tokens [P, N] after P prompts, and the logits [P, N, V] that chose them."""

    tokens: torch.Tensor
    logits: torch.Tensor


@dataclass
class FfnTrace:
    """FFN inputs and outputs [1, S, D], by layer and probed sequence.

    `centred`: the model's LayerNorms subtract the mean of an output over D, which a conversion may leave out.
    """

    centred: bool = False
    inputs: dict[int, BySequence] = field(default_factory=dict)
    outputs: dict[int, BySequence] = field(default_factory=dict)

    def forget(self) -> None:
        """Release the memory."""
        self.inputs.clear()
        self.outputs.clear()


@dataclass(frozen=True)
class DenseRun:
    """The outputs of the dense model that the MoE is compared with."""

    logits: list[torch.Tensor]
    padding: dict[str, float]  # side -> largest |difference| that padding a batch makes to its logits at real tokens
    ffn: FfnTrace


@dataclass(frozen=True)
class MoeRun:
    """The MoE compared with the dense model, and with itself.

    Attributes:
        plain: one sequence at a time.
        padded: side -> largest |difference| of a padded batch's logits at real tokens from the dense model's.
        padded_self: the same from the MoE's unpadded logits, without close calls of the router.
        ffn_error: per layer ||moe_ffn(x) - dense_ffn(x)|| / ||dense_ffn(x)||, None for a layer without an FFN module.
        routing: each MoE layer's decisions on each plain sequence.
        experts: how many of them the plain sequences and the dense model's FFN inputs reached.
    """

    plain: Comparison
    padded: dict[str, float]
    padded_self: dict[str, float]
    ffn_error: tuple[float | None, ...]
    routing: dict[int, list[Routing]]
    experts: ExpertsReached


def run_dense(streamed: StreamedModel, inputs: Inputs, after_layer: Step) -> DenseRun:
    """Run the dense model on each sequence [S_i] separately, and padded on either side.

    A quick verification pads it as well, on one side: the rounding that this shows belongs to the tolerance.
    """
    trace = FfnTrace(centred=_has_plain_layernorms(streamed))
    sequences, sides = inputs.sequences, inputs.sides or SIDES[:1]
    batches = [plain(sequence, inputs.device) for sequence in sequences]
    batches += [padded(streamed.model, inputs.few_sequences, side, inputs.device) for side in sides]
    logits: list[torch.Tensor] = []
    padding: dict[str, float] = {}
    with _tracing(streamed, trace, inputs.probed):
        for index, found in enumerate(streamed.logits(batches, after_layer)):
            if index < len(sequences):
                logits.append(found[0])
            else:
                side = sides[index - len(sequences)]
                real = unpadded(found, inputs.few_sequences, side)
                padding[side] = max(largest(a - logits[b]) for a, b in zip(real, inputs.few, strict=True))
    return DenseRun(logits, padding, trace)


def run_moe(streamed: StreamedModel, dense: DenseRun, inputs: Inputs, after_layer: Step) -> MoeRun:
    """Run the MoE on the same: each sequence separately, and padded on either side."""
    sequences, count = inputs.sequences, len(inputs.sequences)
    batches = [plain(sequence, inputs.device) for sequence in sequences]
    batches += [padded(streamed.model, inputs.few_sequences, side, inputs.device) for side in inputs.sides]
    comparison, own = Comparison(), []
    to_dense: dict[str, float] = {}
    to_itself: dict[str, float] = {}
    with RoutingCapture(streamed.model) as capture, _ffn_errors(streamed, dense.ffn) as errors:
        for index, logits in enumerate(streamed.logits(batches, after_layer)):
            if index < count:
                comparison.add(dense.logits[index], logits[0], sequences[index])
                own.append(logits[0])
            else:
                side = inputs.sides[index - count]
                real = unpadded(logits, inputs.few_sequences, side)
                to_dense[side] = max(largest(a - dense.logits[b]) for a, b in zip(real, inputs.few, strict=True))
                sure = _sure_when_padded(capture, inputs, index, side)
                to_itself[side] = max(largest((a - own[b])[s]) for a, b, s in zip(real, inputs.few, sure, strict=True))
    routing = {
        layer: [_plain_call(capture, layer, index, sequence) for index, sequence in enumerate(sequences)]
        for layer in capture.layers
    }
    reached = [joined_routing(capture.calls(layer)[:count]).chosen().any(0) for layer in capture.layers]
    experts = ExpertsReached(sum(int(found.sum()) for found in reached), sum(map(len, reached)))
    return MoeRun(comparison, to_dense, to_itself, tuple(errors), routing, experts)


def run_plain(streamed: StreamedModel, reference: DenseRun, inputs: Inputs, after_layer: Step) -> Comparison:
    """Run the few sequences separately, and compare with the reference logits."""
    comparison = Comparison()
    for index, logits in zip(inputs.few, few_logits(streamed, inputs, after_layer), strict=True):
        comparison.add(reference.logits[index], logits, inputs.sequences[index])
    return comparison


def few_logits(streamed: StreamedModel, inputs: Inputs, after_layer: Step) -> Iterator[torch.Tensor]:
    """Logits [S, V] of the few sequences, each run separately."""
    batches = [plain(sequence, inputs.device) for sequence in inputs.few_sequences]
    for logits in streamed.logits(batches, after_layer):
        yield logits[0]


def decode(
    streamed: StreamedModel,
    prompts: Sequence[torch.Tensor],
    new_tokens: int,
    device: str,
    after_token: Step = lambda: None,
) -> Decoded:
    """Exactly `new_tokens` greedy tokens after each prompt [S_i], by the model's own `generate`, padded on the left."""
    from transformers import GenerationConfig

    # The checkpoint's generation config (an end token, penalties) would distort the comparison.
    streamed.model.generation_config = GenerationConfig()
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    batch = padded(streamed.model, prompts, "left", device)
    told = streamed.model.register_forward_hook(lambda *_: after_token())
    with torch.no_grad():
        out = streamed.model.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=settings
        )
    told.remove()
    return Decoded(out.sequences[:, batch["input_ids"].shape[1] :], torch.stack(out.logits, dim=1).float())


def expert_names(model: Any) -> list[str]:
    """The weights of all experts, routed and shared, by their names in the model."""
    path, layers = find_layers(model)
    routers = dict(find_routers(model))
    names = []
    for index, router in routers.items():
        own = {id(parameter) for parameter in router.parameters()}
        inside = {id(parameter) for part in ffn_parts(layers[index]) for parameter in part.parameters()} - own
        names += [
            f"{path}.{index}.{name}"
            for name, parameter in layers[index].named_parameters()
            if id(parameter) in inside and parameter.ndim >= 2
        ]
    return names


def decode_both_ways(streamed: StreamedModel, inputs: Inputs, after_token: Step) -> tuple[Decoded, float]:
    """Decode with the KV cache, then run the whole text at once; the largest |difference| of the logits."""
    prompts, new_tokens, device = inputs.prompts, inputs.new_tokens, inputs.device
    with RoutingCapture(streamed.model) as cached:
        decoded = decode(streamed, prompts, new_tokens, device, after_token)
    whole = [torch.cat([prompt, new.cpu()]) for prompt, new in zip(prompts, decoded.tokens, strict=True)]
    with RoutingCapture(streamed.model) as uncached:
        logits = next(iter(streamed.logits([padded(streamed.model, whole, "left", device)])))
    longest = max(len(prompt) for prompt in prompts)
    worst = 0.0
    for row, prompt in enumerate(prompts):
        width = longest + new_tokens
        b = [uncached.routing(layer).at(slice(row * width, (row + 1) * width - 1)) for layer in uncached.layers]
        a = [_decoding_routing(cached, layer, row, len(prompts), r) for layer, r in zip(cached.layers, b, strict=True)]
        real = slice(longest - len(prompt), None)
        sure = before_first_close_call([r.at(real) for r in b], [r.at(real) for r in a])[len(prompt) - 1 :]
        difference = decoded.logits[row] - logits[row, longest - 1 : -1]
        worst = max(worst, largest(difference[sure.to(difference.device)]))
    return decoded, worst


def _decoding_routing(capture: RoutingCapture, layer: int, row: int, rows: int, whole: Routing) -> Routing:
    """A row's routing along the prompt (first call, [rows, prompt] tokens) and the new tokens (one call each).

    Layers that reuse the keys of others (Gemma 4) run for the prompt's end only; the rest of it is as in `whole`.
    """
    first, *steps = capture.calls(layer)
    count = len(first.indices) // rows
    skipped = len(whole.indices) - count - len(steps)
    parts = [whole.at(slice(0, skipped)), first.at(slice(row * count, (row + 1) * count))]
    return joined_routing([*parts, *(step.at(slice(row, row + 1)) for step in steps)])


def joined_routing(parts: Sequence[Routing]) -> Routing:
    return Routing(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.indices for part in parts]),
        torch.cat([part.scores for part in parts]),
    )


def _plain_call(capture: RoutingCapture, layer: int, index: int, sequence: torch.Tensor) -> Routing:
    # The call also contains the dense model's inputs, after the MoE's.
    return capture.calls(layer)[index].at(slice(0, len(sequence)))


def _sure_when_padded(capture: RoutingCapture, inputs: Inputs, call: int, side: Side) -> list[torch.Tensor]:
    sequences = inputs.few_sequences
    longest = max(len(sequence) for sequence in sequences)
    sure = []
    for row, (index, sequence) in enumerate(zip(inputs.few, sequences, strict=True)):
        place = real_positions(len(sequence), longest, side)
        tokens = slice(row * longest + place.start, row * longest + place.stop)
        base = [_plain_call(capture, layer, index, sequence) for layer in capture.layers]
        other = [capture.calls(layer)[call].at(tokens) for layer in capture.layers]
        sure.append(before_first_close_call(base, other).to(base[0].logits.device))
    return sure


def unpadded(logits: torch.Tensor, sequences: Sequence[torch.Tensor], side: Side) -> list[torch.Tensor]:
    """The logits of each sequence at its own tokens, [S_i, V]."""
    return [logits[row, real_positions(len(sequence), logits.shape[1], side)] for row, sequence in enumerate(sequences)]


def _has_plain_layernorms(streamed: StreamedModel) -> bool:
    """Whether the layers' norms are LayerNorm without weights, to which a constant vector is 0."""
    norms = [part for name, part in streamed.layers[0].named_children() if "norm" in name]
    plain_norms = [norm for norm in norms if not list(norm.parameters())]
    ones = torch.ones(1, int(getattr(streamed.model.config, "hidden_size", 1)))
    return bool(plain_norms) and not any(norm(ones).any() for norm in plain_norms)


@contextmanager
def _tracing(streamed: StreamedModel, trace: FfnTrace, probed: Sequence[int]) -> Iterator[None]:
    handles = [
        part.register_forward_hook(_tracer(trace, layer, streamed, probed))
        for layer in range(len(streamed.layers))
        for part in streamed.mlp(layer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tracer(trace: FfnTrace, layer: int, streamed: StreamedModel, probed: Sequence[int]) -> Any:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
        if (index := streamed.current) not in probed:
            return
        outputs = trace.outputs.setdefault(layer, {})
        if index in outputs:  # a second part of the same FFN
            outputs[index] = outputs[index] + _tensor(output)
        else:
            trace.inputs.setdefault(layer, {})[index] = args[0]
            outputs[index] = _tensor(output)

    return hook


@contextmanager
def _ffn_errors(streamed: StreamedModel, trace: FfnTrace) -> Iterator[list[float | None]]:
    """Run every FFN on the dense FFN's inputs as well; the list contains each layer's error after the block."""
    remainders = {layer: dict(outputs) for layer, outputs in trace.outputs.items()}
    handles: list[Any] = []
    for layer in remainders:
        for part in streamed.mlp(layer):
            handles += _probe(streamed, part, trace.inputs[layer], remainders[layer])
    errors: list[float | None] = []
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()
    errors += [
        _relative(remainders[layer], trace.outputs[layer], trace.centred) if layer in remainders else None
        for layer in range(len(streamed.layers))
    ]


def _probe(
    streamed: StreamedModel,
    part: torch.nn.Module,
    inputs: BySequence,
    remainder: BySequence,
) -> list[Any]:
    def before(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if streamed.current not in inputs:
            return None
        return (torch.cat([args[0], inputs[streamed.current]]), *args[1:])

    def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if streamed.current not in inputs:
            return None
        own, dense = _tensor(output).chunk(2)
        remainder[streamed.current] = remainder[streamed.current] - dense
        return (own, *output[1:]) if isinstance(output, tuple) else own

    return [part.register_forward_pre_hook(before), part.register_forward_hook(after)]


def _relative(difference: BySequence, reference: BySequence, centred: bool) -> float:
    def norm(tensors: BySequence) -> float:
        doubles = map(in_double, tensors.values())
        kept = (x - x.mean(-1, keepdim=True) if centred else x for x in doubles)
        return sum(x.square().sum().item() for x in kept) ** 0.5

    return norm(difference) / max(norm(reference), 1e-30)


def _tensor(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
