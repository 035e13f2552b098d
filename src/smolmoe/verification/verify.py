"""Compare an MoE with the dense model that it was made from: the saved files, on real text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.allocator import kept_memory
from smolmoe.core.claim import Claim, read_claim
from smolmoe.core.devices import pick_device
from smolmoe.core.model_config import check_decodes
from smolmoe.core.progress import Progress, silent
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import Skeleton, load_tokenizer
from smolmoe.moe.routing import Routing, RoutingCapture, incomplete_groups
from smolmoe.moe.streaming import GIB, StreamedModel, random_like
from smolmoe.moe.structure import find_layers
from smolmoe.results.verification import (
    Control,
    Decoding,
    Difference,
    HalfPrecision,
    Padding,
    Verification,
    VerifyMode,
)
from smolmoe.verification.checks import judge
from smolmoe.verification.logits import Comparison, flip_rate, largest
from smolmoe.verification.measure import (
    Decoded,
    DenseRun,
    MoeRun,
    Step,
    decode,
    decode_both_ways,
    expert_names,
    few_logits,
    joined_routing,
    run_dense,
    run_moe,
    run_plain,
)
from smolmoe.verification.precision import full_precision
from smolmoe.verification.sample import Sample, draw_sample
from smolmoe.verification.scope import NEW_TOKENS_WHEN_STREAMED, SCOPES, Inputs
from smolmoe.verification.work import Clock, Work, parts_of

__all__ = ["Verification", "verify"]


@full_precision()
@kept_memory()
def verify(
    dense: str | Path,
    moe: str | Path,
    *,
    mode: VerifyMode = "full",
    text: Path | None = None,
    claim: Claim | Mapping[str, Any] | None = None,
    device: str = "auto",
    sequences: int | None = None,
    length: int = 128,
    new_tokens: int = 8,
    seed: int = 0,
    resident_bytes: int = 8 * GIB,
    report: Progress = silent,
) -> Verification:
    """Load both checkpoints with transformers, compare them on real text, and check the claim.

    Computes in fp32 from the stored weights. If the MoE is stored in 16 bits and the dense model in another dtype, the
    dense weights are rounded to the MoE's dtype first. One model is in memory at a time, with at most `resident_bytes`
    of decoder layers; a layer that fits is read once.

    Args:
        dense, moe: checkpoint folders.
        mode: "quick" takes fewer sequences, and leaves out padded batches, decoding and 16 bits.
        text: documents to measure on (.jsonl, .txt, .parquet); default text from this Python installation.
        claim: default: that of the MoE's smolmoe.json. Without a claim, only sanity is checked.
        sequences, length: how many token sequences, of unequal lengths, and the longest; 6, or 2 if quick.
        new_tokens: decoded after each prompt; at most 4 if the MoE does not fit into `resident_bytes`.
        resident_bytes: memory for decoder layers.
        report: called after each layer and each decoded token.

    Raises:
        SourceError: a folder holds no model, `moe` is dense, or it was not made from a model like `dense`.
        CheckpointError: files missing or corrupt, or tensors that do not fit the config.
        RequestError, DataError: nothing to measure on.
    """
    clock = Clock()
    if new_tokens < 1:
        raise RequestError("at least one token must be decoded.", field="new_tokens", value=new_tokens)
    scope, device = SCOPES[mode], pick_device(device)
    pair = _Pair.open(dense, moe, device, resident_bytes)
    check_decodes(pair.moe.folder, "moe")
    if not isinstance(claim, Claim):
        claim = read_claim(pair.moe.folder) if claim is None else Claim.from_json(claim)
    new_tokens = new_tokens if pair.fits else min(new_tokens, NEW_TOKENS_WHEN_STREAMED)
    tokenizer, config = load_tokenizer(pair.dense.folder), pair.dense.config
    count = scope.sequences if sequences is None else sequences
    sample = draw_sample(tokenizer, config, text, count=count, length=length, seed=seed, reserve=new_tokens)
    same_tokens = _same_tokens(tokenizer, pair.moe.folder, sample)
    predicted = bool(claim.predicted_ffn_error)
    inputs = Inputs.of(sample.sequences, scope, new_tokens, config, device, predicted=predicted)
    half = scope.half and pair.dtype != torch.float32
    work = Work(parts_of(pair.dense, pair.moe, inputs, half=half), report)
    work.seconds["open"] = clock.read()
    work.announce(device)

    reference = _measure_dense(pair, inputs, work, half=half)
    found = _measure_moe(pair, inputs, work, reference, claim, seed)
    measured, padding = found.run, reference.run.padding
    routing = [joined_routing(calls) for calls in measured.routing.values()]
    result = Verification(
        dense=str(pair.dense.folder),
        moe=str(pair.moe.folder),
        mode=mode,
        claim=claim,
        reference=f"the dense model, rounded to {_name(pair.dtype)}" if pair.rounding else "the dense model",
        dtype=_name(pair.dtype),
        text=sample.origin,
        lengths=tuple(len(sequence) for sequence in sample.sequences),
        logits=_difference(measured.plain),
        rounding=max(padding.values()),
        padding=_padding(measured, reference.run) if inputs.sides else None,
        decoding=found.decoding,
        control=Control(found.control.loss, found.control.max_abs),
        ffn_error=measured.ffn_error,
        experts=measured.experts,
        incomplete_groups=_incomplete(routing, claim.granularity),
        half=found.half,
        checks=(),
        seconds=round(clock.read().wall, 1),
        seconds_by_part=work.seconds,
    )
    not_finite = pair.moe.not_finite_read()
    checks = judge(result, finite=measured.plain.finite, not_finite=not_finite, same_tokens=same_tokens)
    return result.model_copy(update={"checks": checks})


@dataclass(frozen=True)
class _Reference:
    """What the dense model gave; `half` are logits [S, V] of the few sequences in 16 bits."""

    run: DenseRun
    decoded: Decoded | None
    half: list[torch.Tensor] | None


@dataclass(frozen=True)
class _Found:
    """What the MoE gave, compared with the dense model."""

    run: MoeRun
    decoding: Decoding | None
    half: HalfPrecision | None
    control: Comparison


def _measure_dense(pair: _Pair, inputs: Inputs, work: Work, *, half: bool) -> _Reference:
    decoded = logits = None
    with pair.open_dense() as streamed:
        with work.part("dense model") as step:
            run = run_dense(streamed, inputs, step)
        if inputs.prompts:
            with work.part("dense model, decoding") as step:
                decoded = decode(streamed, inputs.prompts, inputs.new_tokens, inputs.device, step)
        if half:
            with work.part("dense model, 16 bits") as step, pair.in_half(streamed) as rounded:
                logits = list(few_logits(rounded, inputs, step))
    return _Reference(run, decoded, logits)


def _measure_moe(pair: _Pair, inputs: Inputs, work: Work, reference: _Reference, claim: Claim, seed: int) -> _Found:
    decoding = half = None
    with pair.open_moe() as streamed:
        with work.part("MoE") as step:
            run = run_moe(streamed, reference.run, inputs, step)
        reference.run.ffn.forget()
        if reference.decoded is not None:
            with work.part("MoE, decoding") as step:
                decoding = _decoding(reference.decoded, *decode_both_ways(streamed, inputs, step))
        if reference.half is not None:
            with work.part("MoE, 16 bits") as step, pair.in_half(streamed) as rounded:
                half = _half(rounded, inputs, reference, run, claim, step)
        redraw = random_like(expert_names(streamed.model), seed)
        with work.part("control") as step, streamed.transformed(redraw):
            control = run_plain(streamed, reference.run, inputs, step)
    return _Found(run, decoding, half, control)


@dataclass(frozen=True)
class _Pair:
    """The two checkpoints, their weights not read yet.

    Attributes:
        dtype: the MoE is stored in.
        rounding: dtype that dense weights are rounded to, if any.
        fits: the MoE's decoder layers fit into memory.
    """

    dense: Skeleton
    moe: Skeleton
    dtype: torch.dtype
    rounding: torch.dtype | None
    fits: bool
    device: str
    resident_bytes: int

    @classmethod
    def open(cls, dense: str | Path, moe: str | Path, device: str, resident_bytes: int) -> _Pair:
        source, target = Skeleton(dense), Skeleton(moe, finite=False)  # a NaN of the MoE fails a check
        _, layers = find_layers(target.model)
        _check_related(source, target)
        RoutingCapture(target.model)  # raises for a dense model
        dtype = target.stored_dtype()
        is_rounded = dtype != torch.float32 and dtype != source.stored_dtype()
        size = sum(parameter.numel() * parameter.element_size() for parameter in layers.parameters())
        rounding = dtype if is_rounded else None
        return cls(source, target, dtype, rounding, size <= resident_bytes, device, resident_bytes)

    def open_dense(self) -> StreamedModel:
        return self._open(self.dense)

    def open_moe(self) -> StreamedModel:
        return self._open(self.moe)

    def _open(self, skeleton: Skeleton) -> StreamedModel:
        rounding = self.rounding if skeleton is self.dense else None
        return StreamedModel(skeleton, stored_dtype=rounding, resident_bytes=self.resident_bytes, device=self.device)

    def in_half(self, streamed: StreamedModel) -> StreamedModel:
        """The same model, computing in the MoE's 16-bit dtype; one layer of it is in memory at a time."""
        return StreamedModel(
            streamed.folder, dtype=self.dtype, memory=streamed, resident_bytes=0, device=self.device, finite=False
        )


def _check_related(source: Skeleton, target: Skeleton) -> None:
    for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
        ours, theirs = getattr(target.config.get_text_config(), field), getattr(source.config.get_text_config(), field)
        if ours != theirs:
            raise SourceError(
                f"the MoE was not made from this dense model: its {field} is {ours}, not {theirs}.",
                field=field,
                value=ours,
                fix="Use the dense model it was made from.",
            )


def _same_tokens(dense: Any | None, folder: Path, sample: Sample) -> bool | None:
    """Whether the MoE's tokenizer produces the dense model's tokens; None if the dense model has no tokenizer."""
    if dense is None:
        return None
    moe = load_tokenizer(folder)
    if moe is None:
        return False
    texts = [dense.decode(sequence) for sequence in sample.sequences]
    return all(dense(text)["input_ids"] == moe(text)["input_ids"] for text in texts)


def _half(
    streamed: StreamedModel, inputs: Inputs, dense: _Reference, moe: MoeRun, claim: Claim, step: Step
) -> HalfPrecision:
    assert dense.half is not None
    noise, difference = Comparison(), Comparison()
    with RoutingCapture(streamed.model) as capture:
        found = list(few_logits(streamed, inputs, step))
    for index, rounded, logits in zip(inputs.few, dense.half, found, strict=True):
        noise.add(dense.run.logits[index], rounded, inputs.sequences[index])
        difference.add(rounded, logits, inputs.sequences[index])
    routing = [capture.routing(layer) for layer in capture.layers]
    exact = [joined_routing([moe.routing[layer][index] for index in inputs.few]) for layer in capture.layers]
    return HalfPrecision(
        dtype=_name(streamed.skeleton.dtype),
        max_abs=difference.max_abs,
        mean_abs=difference.mean_abs,
        noise_max_abs=noise.max_abs,
        noise_mean_abs=noise.mean_abs,
        flips=flip_rate(exact, routing),
        incomplete_groups=_incomplete(routing, claim.granularity),
    )


def _padding(moe: MoeRun, dense: DenseRun) -> Padding:
    return Padding(
        **moe.padded,
        **{f"{side}_self": value for side, value in moe.padded_self.items()},
        **{f"{side}_dense": value for side, value in dense.padding.items()},
    )


def _incomplete(routing: Sequence[Routing], granularity: int) -> float | None:
    if granularity == 1:
        return None
    return sum(incomplete_groups(layer, granularity) for layer in routing) / len(routing)


def _difference(comparison: Comparison) -> Difference:
    return Difference(
        max_abs=comparison.max_abs,
        mean_abs=comparison.mean_abs,
        max_logit=comparison.max_logit,
        per_sequence=tuple(comparison.per_sequence),
        kl=comparison.kl,
        top1=comparison.top1,
        dense_loss=comparison.reference_loss,
        loss=comparison.loss,
        delta_loss=comparison.loss - comparison.reference_loss,
    )


def _decoding(dense: Decoded, moe: Decoded, cached_self: float) -> Decoding:
    """Compare up to each prompt's first differing token: the texts differ after it."""
    prompts, new_tokens = dense.tokens.shape
    firsts, margins, worst = [], [], 0.0
    for row in range(prompts):
        different = torch.nonzero(dense.tokens[row] != moe.tokens[row]).flatten()
        first = int(different[0]) if len(different) else new_tokens
        shown = min(first + 1, new_tokens)
        worst = max(worst, largest(dense.logits[row, :shown] - moe.logits[row, :shown]))
        if first < new_tokens:
            firsts.append(first)
            margins.append((dense.logits[row, first].max() - dense.logits[row, first, moe.tokens[row, first]]).item())
    return Decoding(
        prompts=prompts,
        new_tokens=new_tokens,
        equal=not firsts,
        first_difference=min(firsts, default=None),
        margin=max(margins, default=None),
        max_abs=worst,
        max_abs_self=cached_self,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
