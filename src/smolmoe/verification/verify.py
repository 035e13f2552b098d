"""Compare an MoE with the dense model that it was made from: the saved files, on real text."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.claim import Claim, read_claim
from smolmoe.core.devices import pick_device
from smolmoe.core.model_config import check_decodes
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import Skeleton
from smolmoe.moe.routing import Routing, RoutingCapture, incomplete_groups
from smolmoe.moe.streaming import GIB, StreamedModel, random_like
from smolmoe.moe.structure import find_layers
from smolmoe.results.verification import Control, Decoding, Difference, HalfPrecision, Padding, Verification
from smolmoe.verification.checks import judge
from smolmoe.verification.logits import Comparison, flip_rate, largest
from smolmoe.verification.measure import Decoded, DenseRun, MoeRun, expert_names, run_dense, run_moe, run_plain
from smolmoe.verification.precision import full_precision
from smolmoe.verification.sample import Sample, draw_sample, plain

__all__ = ["Verification", "verify"]

logger = logging.getLogger(__name__)

# A model that does not fit into memory is read again for every decoded token.
NEW_TOKENS_WHEN_STREAMED = 4
PROMPTS = 3


@full_precision()
def verify(
    dense: str | Path,
    moe: str | Path,
    *,
    text: Path | None = None,
    claim: Claim | Mapping[str, Any] | None = None,
    device: str = "auto",
    sequences: int = 6,
    length: int = 128,
    new_tokens: int = 16,
    seed: int = 0,
    resident_bytes: int = 8 * GIB,
) -> Verification:
    """Load both checkpoints with transformers, compare them on real text, and check the claim.

    Computes in fp32 from the stored weights. If the MoE is stored in 16 bits and the dense model in another dtype, the
    dense weights are rounded to the MoE's dtype first. One model is in memory at a time, with at most `resident_bytes`
    of decoder layers.

    Args:
        dense, moe: checkpoint folders.
        text: documents to measure on (.jsonl, .txt, .parquet); default text from this Python installation.
        claim: default: that of the MoE's smolmoe.json. Without a claim, only sanity is checked.
        sequences, length: how many token sequences, of unequal lengths, and the longest.
        new_tokens: decoded after each prompt; at most 4 if the MoE does not fit into `resident_bytes`.
        resident_bytes: memory for decoder layers.

    Raises:
        SourceError: a folder holds no model, `moe` is dense, or it was not made from a model like `dense`.
        CheckpointError: files missing or corrupt, or tensors that do not fit the config.
        RequestError, DataError: nothing to measure on.
    """
    started = time.monotonic()
    if new_tokens < 1:
        raise RequestError("at least one token must be decoded.", field="new_tokens", value=new_tokens)
    device = pick_device(device)
    pair = _Pair.open(dense, moe, device, resident_bytes)
    check_decodes(pair.moe, "moe")
    if not isinstance(claim, Claim):
        claim = read_claim(pair.moe) if claim is None else Claim.from_json(claim)
    new_tokens = new_tokens if pair.fits else min(new_tokens, NEW_TOKENS_WHEN_STREAMED)

    with pair.open_dense() as streamed:
        tokenizer = streamed.tokenizer
        sample = draw_sample(
            tokenizer, streamed.config, text, count=sequences, length=length, seed=seed, reserve=new_tokens
        )
        prompts = [sequence[: max(2, len(sequence) // 4)] for sequence in sample.sequences[:PROMPTS]]
        prompts = _on_one_side(prompts, new_tokens, streamed.config)
        logger.info("dense model: %d tokens", sample.tokens)
        reference = run_dense(streamed, sample.sequences, prompts, new_tokens, device)
    with pair.open_moe() as streamed:
        logger.info("MoE: the same, padded, and with the KV cache")
        same_tokens = _same_tokens(tokenizer, streamed.tokenizer, sample)
        measured = run_moe(streamed, reference, sample.sequences, prompts, device)
        redraw = random_like(expert_names(streamed.model), seed)
    reference.ffn.forget()
    with pair.open_moe(transform=redraw) as streamed:
        logger.info("control: the MoE with random experts")
        random_experts = run_plain(streamed, reference.logits, sample.sequences, device)

    found = Verification(
        dense=str(pair.dense),
        moe=str(pair.moe),
        claim=claim,
        reference=f"the dense model, rounded to {_name(pair.dtype)}" if pair.rounding else "the dense model",
        dtype=_name(pair.dtype),
        text=sample.origin,
        lengths=tuple(len(sequence) for sequence in sample.sequences),
        logits=_difference(measured.plain),
        padding=Padding(
            **measured.padded,
            **{f"{side}_self": value for side, value in measured.padded_self.items()},
            **{f"{side}_dense": value for side, value in reference.padding.items()},
        ),
        decoding=_decoding(reference.decoded, measured.decoded, measured.cached_self),
        control=Control(random_experts.loss, random_experts.max_abs),
        ffn_error=measured.ffn_error,
        incomplete_groups=_incomplete(measured.routing, claim.granularity),
        half=_half(pair, reference, measured, sample, claim) if pair.dtype != torch.float32 else None,
        checks=(),
        seconds=0.0,
    )
    checks = judge(found, finite=measured.plain.finite, not_finite=pair.not_finite, same_tokens=same_tokens)
    return found.model_copy(update={"checks": checks, "seconds": round(time.monotonic() - started, 1)})


def _on_one_side(prompts: list[torch.Tensor], new_tokens: int, config: Any) -> list[torch.Tensor]:
    """Prompts cut so that decoding does not grow past the length at which longrope changes its frequencies.

    Only Phi3ForCausalLM computes its cached keys again there; claims state this limit.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limit = int(rope.get("original_max_position_embeddings") or 0) if rope.get("rope_type") == "longrope" else 0
    crosses = max(map(len, prompts)) <= limit < max(map(len, prompts)) + new_tokens
    return [prompt[: max(2, limit - new_tokens)] for prompt in prompts] if crosses else prompts


@dataclass(frozen=True)
class _Pair:
    """The two checkpoints.

    Attributes:
        dtype: the MoE is stored in.
        rounding: dtype that dense weights are rounded to, if any.
        not_finite: tensors of the MoE with NaN or infinity, and their extent.
    """

    dense: Path
    moe: Path
    dtype: torch.dtype
    rounding: torch.dtype | None
    fits: bool
    not_finite: dict[str, str]
    device: str
    resident_bytes: int

    @classmethod
    def open(cls, dense: str | Path, moe: str | Path, device: str, resident_bytes: int) -> _Pair:
        source, target = Skeleton(dense), Skeleton(moe)
        _, layers = find_layers(target.model)
        _check_related(source, target)
        RoutingCapture(target.model)  # raises for a dense model
        dtype = target.stored_dtype()
        is_rounded = dtype != torch.float32 and dtype != source.stored_dtype()
        size = sum(parameter.numel() * parameter.element_size() for parameter in layers.parameters())
        return cls(
            source.folder,
            target.folder,
            dtype,
            dtype if is_rounded else None,
            size <= resident_bytes,
            target.not_finite(),
            device,
            resident_bytes,
        )

    def open_dense(self, **options: Any) -> StreamedModel:
        return self._open(self.dense, stored_dtype=self.rounding, **options)

    def open_moe(self, **options: Any) -> StreamedModel:
        return self._open(self.moe, finite=False, **options)  # a NaN fails a check

    def _open(self, folder: Path, **options: Any) -> StreamedModel:
        return StreamedModel(folder, resident_bytes=self.resident_bytes, device=self.device, **options)


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


def _same_tokens(dense: Any | None, moe: Any | None, sample: Sample) -> bool | None:
    """Whether both tokenizers produce the same tokens for the sample; None if the dense model has none."""
    if dense is None:
        return None
    if moe is None:
        return False
    texts = [dense.decode(sequence) for sequence in sample.sequences]
    return all(dense(text)["input_ids"] == moe(text)["input_ids"] for text in texts)


def _half(pair: _Pair, dense: DenseRun, moe: MoeRun, sample: Sample, claim: Claim) -> HalfPrecision:
    logger.info("both models in %s", _name(pair.dtype))
    batches = [plain(sequence, pair.device) for sequence in sample.sequences]
    with pair.open_dense(dtype=pair.dtype) as streamed:
        reference = [logits[0] for logits in streamed.logits(batches)]
    noise = Comparison()
    for exact, rounded, sequence in zip(dense.logits, reference, sample.sequences, strict=True):
        noise.add(exact, rounded, sequence)
    with pair.open_moe(dtype=pair.dtype) as streamed, RoutingCapture(streamed.model) as capture:
        difference = run_plain(streamed, reference, sample.sequences, pair.device)
    routing = [capture.routing(layer) for layer in capture.layers]
    return HalfPrecision(
        dtype=_name(pair.dtype),
        max_abs=difference.max_abs,
        mean_abs=difference.mean_abs,
        noise_max_abs=noise.max_abs,
        noise_mean_abs=noise.mean_abs,
        flips=flip_rate(moe.routing, routing),
        incomplete_groups=_incomplete(routing, claim.granularity),
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
