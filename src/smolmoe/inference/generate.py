"""Continue a text with a dense or MoE checkpoint, or with some experts of one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.devices import kind, pick_device
from smolmoe.core.model_config import check_decodes
from smolmoe.core.vocabulary import check_token, naming_rows
from smolmoe.errors import RequestError
from smolmoe.inference.decoding import fast_decoding
from smolmoe.inference.expert_choice import labels, load_experts
from smolmoe.inference.offload import Traffic, offload_experts
from smolmoe.inference.sampling import (
    answer_text,
    answering_tokenizer,
    check_ranges,
    end_tokens,
    padded,
    plain_generation,
    until_end,
)
from smolmoe.inference.selective import TensorBytes
from smolmoe.moe.kernels.register import set_experts
from smolmoe.moe.loading import Skeleton, load_config, load_model


@dataclass(frozen=True)
class LoadedExperts:
    """The only experts that were loaded.

    Attributes:
        names: of the experts; "expert 3" if one has no name.
        indices: their indices in the model.
        confidence: of the secretary in its choice; None if the caller named them.
        bytes: of tensors, read and held.
    """

    names: tuple[str, ...]
    indices: tuple[int, ...]
    confidence: float | None
    bytes: TensorBytes


@dataclass(frozen=True)
class Generation:
    """Continuations of a prompt.

    Attributes:
        prompt: the prompt.
        texts: the continuations, without the prompt.
        new_tokens: tokens of each, an end-of-text token included.
        seconds: for the whole batch, loading excluded.
        experts: the only ones loaded; None if all were loaded or the model is dense.
        offload: transfers to the device, if experts stayed on the CPU.
        device: device of the computation.
    """

    prompt: str
    texts: tuple[str, ...]
    new_tokens: tuple[int, ...]
    seconds: float
    experts: LoadedExperts | None = None
    offload: Traffic | None = None
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def generate(model: str | Path, prompt: str, **options: Any) -> Generation:
    """Continue one prompt; options and errors as those of `generate_all`."""
    return generate_all(model, [prompt], **options)[0]


def generate_all(
    model: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    num: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "auto",
    experts: str | Sequence[str | int] | None = None,
    offload_experts: bool = False,
    expert_memory: int | None = None,
) -> tuple[Generation, ...]:
    """Continue each prompt `num` times, in the dtype that the model is stored in.

    Prompts are answered in batches, padded on the left. Greedy texts equal those of each prompt alone, up to
    rounding; sampled texts depend on the batch.

    Args:
        model: folder or hub id of a dense model, a stock MoE or our generic one; no remote code is run.
        max_new_tokens: longest continuation, in tokens; it ends earlier at the model's end-of-text token.
        temperature: 0 always takes the most likely token.
        top_p: sample from the most likely tokens that together have this probability.
        repetition_penalty: above 1, repeated tokens become less likely.
        seed: of the sampling.
        batch_size: prompts at once.
        experts: names or indices of the only experts to load; or "auto" to choose by the prompt (see `secretary`), for
            one prompt only. The result is that of the model restricted to them.
        offload_experts: experts stay on the CPU; those that a layer's router chooses are copied to the device.
        expert_memory: maximum bytes of experts on the device, see `inference.offload.offload_experts`.

    Raises:
        RequestError: a value out of its range, an expert that does not exist, no prompt, or one that leaves no room in
            the model's context.
        DataError: a prompt has a token that the model does not have.
        SourceError: no such model, or it has no tokenizer.
        CheckpointError: its files are missing or corrupt.
    """
    device = pick_device(device)
    _check_values(max_new_tokens, temperature, top_p, repetition_penalty, num, batch_size)
    _check_experts(prompts, experts, offload_experts, expert_memory)
    folder = open_checkpoint(model, field="model").folder
    check_decodes(folder, "model")
    tokenizer = answering_tokenizer(folder)
    encoded = []
    for number, prompt in enumerate(prompts):
        with naming_rows(prompt, first=number, field="prompt", what="prompt"):
            encoded.append(_encode(tokenizer, prompt))
    context = getattr(load_config(folder).get_text_config(), "max_position_embeddings", None)
    _check_room(max(map(len, encoded)), max_new_tokens, context)

    network, loaded = _load(folder, prompts[0], experts)
    traffic = _place(network, device, offload_experts, expert_memory)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    options = {"num_return_sequences": num, "repetition_penalty": repetition_penalty, **sampling}
    found: list[Generation] = []
    for first in range(0, len(prompts), batch_size):
        batch = slice(first, first + batch_size)
        started = time.monotonic()
        texts = _answer(network, tokenizer, encoded[batch], seed, device, {"max_new_tokens": max_new_tokens, **options})
        seconds = round(time.monotonic() - started, 3)
        for prompt, (answers, lengths) in zip(prompts[batch], texts, strict=True):
            found.append(Generation(prompt, answers, lengths, seconds, loaded, traffic, device))
    return tuple(found)


def _answer(
    network: Any, tokenizer: Any, prompts: Sequence[list[int]], seed: int, device: str, options: dict[str, Any]
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """For each prompt of a batch the continuations, and how many tokens each has."""
    ends, num = end_tokens(network, tokenizer), options["num_return_sequences"]
    ids, mask = padded(prompts, device, side="left", value=ends[0] if ends else 0)
    longest = ids.shape[1]
    used = [torch.device(device)] if kind(device) == "cuda" else []  # by default all GPUs, which would be started
    with torch.no_grad(), torch.random.fork_rng(used), plain_generation(network, ends), fast_decoding(network):
        torch.manual_seed(seed)
        out = network.generate(input_ids=ids, attention_mask=mask, **options)
    rows = [until_end(row[longest:], ends) for row in out.tolist()]
    groups = [rows[num * at : num * (at + 1)] for at in range(len(prompts))]
    return [
        (tuple(answer_text(tokenizer, prompt, row) for row in group), tuple(map(len, group)))
        for prompt, group in zip(prompts, groups, strict=True)
    ]


def _load(folder: Path, prompt: str, experts: str | Sequence[str | int] | None) -> tuple[Any, LoadedExperts | None]:
    """The model on the CPU, complete or with some experts."""
    if experts is None:
        return load_model(folder, dtype=Skeleton(folder).stored_dtype()), None
    selective, indices, choice = load_experts(folder, experts, prompt)
    names = labels(selective.config, indices, selective.experts)
    loaded = LoadedExperts(names, indices, choice.confidence if choice else None, selective.bytes())
    return selective.model, loaded


def _place(network: Any, device: str, offload: bool, memory: int | None) -> Traffic | None:
    set_experts(network, device=device)
    if not offload:
        network.to(device)
        return None
    return offload_experts(network, device=device, expert_memory=memory)


def _check_experts(
    prompts: Sequence[str], experts: str | Sequence[str | int] | None, offload: bool, memory: int | None
) -> None:
    if memory is not None and not offload:
        raise RequestError(
            "a budget needs offloaded experts.",
            field="expert_memory",
            value=memory,
            fix="Set offload_experts, too.",
        )
    if not prompts:
        raise RequestError("no prompt is given.", field="prompts", value=0, fix="Give at least one.")
    if experts == "auto" and len(prompts) > 1:
        raise RequestError(
            "experts are chosen for a single prompt, but there are several.",
            field="experts",
            value=experts,
            fix="Name the experts, or use one prompt at a time.",
        )


def _check_values(
    max_new_tokens: int, temperature: float, top_p: float, repetition_penalty: float, num: int, batch_size: int
) -> None:
    valid = {
        "max_new_tokens": (max_new_tokens, max_new_tokens >= 1, "at least 1"),
        "temperature": (temperature, 0 <= temperature < float("inf"), "0 (greedy) or above"),
        "top_p": (top_p, 0 < top_p <= 1, "above 0, at most 1"),
        "repetition_penalty": (repetition_penalty, 0 < repetition_penalty < float("inf"), "above 0; 1 means none"),
        "num": (num, num >= 1, "at least 1"),
        "batch_size": (batch_size, batch_size >= 1, "at least 1"),
    }
    check_ranges(valid)
    if num > 1 and temperature == 0:
        raise RequestError(
            "greedy decoding gives the same text every time.",
            field="num",
            value=num,
            fix="Use num=1, or a temperature above 0.",
        )


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    ids = list(tokenizer(prompt)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [check_token(tokenizer, tokenizer.bos_token_id, "beginning-of-text token")]
    if not ids:
        raise RequestError("the prompt contains no tokens.", field="prompt", value=prompt, fix="Give some text.")
    return ids


def _check_room(given: int, new: int, context: int | None) -> None:
    if context is None or given + new <= context:
        return
    if given >= context:
        raise RequestError(
            f"{given} tokens exceed the model's context of {context}.",
            field="prompt",
            value=f"{given} tokens",
            fix="Shorten it.",
        )
    raise RequestError(
        f"with a prompt of {given} tokens it exceeds the model's context of {context}.",
        field="max_new_tokens",
        value=new,
        fix=f"Use at most {context - given}.",
    )
