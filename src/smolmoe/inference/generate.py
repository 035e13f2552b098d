"""Answer or continue a text with a dense or MoE checkpoint, or with some experts of one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from smolmoe.core.vocabulary import check_token, naming_rows
from smolmoe.errors import RequestError
from smolmoe.inference.chat_format import chat_ids, user_message
from smolmoe.inference.offload import Traffic
from smolmoe.inference.sampling import check_ranges
from smolmoe.inference.settings import Sampling
from smolmoe.inference.streaming import OnText
from smolmoe.inference.writer import Answer, End, LoadedExperts, Prepared, Writer, room_for
from smolmoe.recipe.base import parse
from smolmoe.recipe.generation import CHAT_TOKENS, RAW_TOKENS, GenerationRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """Answers to a prompt, or continuations of it.

    Attributes:
        prompt: the prompt.
        texts: the answers, without the prompt.
        new_tokens: tokens of each, an end token included.
        seconds: for the whole batch, loading excluded.
        experts: the only ones loaded; None if all were loaded or the model is dense.
        offload: transfers to the device, if experts stayed on the CPU.
        device: device of the computation.
        format: "chat" if the prompt was a message in the model's chat template, "raw" if it was continued.
        prompt_tokens: of the prompt, with those of the template.
        ends: what ended each text: "end_token", "stop_text", "length" or "interrupted".
        end_tokens: the tokens that would have ended it.
        sampling: how tokens were chosen.
    """

    prompt: str
    texts: tuple[str, ...]
    new_tokens: tuple[int, ...]
    seconds: float
    experts: LoadedExperts | None
    offload: Traffic | None
    device: str
    format: Literal["chat", "raw"]
    prompt_tokens: int
    ends: tuple[End, ...]
    end_tokens: tuple[str, ...]
    sampling: Sampling

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def generation(
    writer: Writer, prompt: str, prompt_tokens: int, answers: Sequence[Answer], seconds: float, *, chat: bool
) -> Generation:
    """The result of one prompt."""
    tokenizer = writer.prepared.tokenizer
    return Generation(
        prompt,
        tuple(answer.text for answer in answers),
        tuple(len(answer.ids) for answer in answers),
        round(seconds, 3),
        writer.experts,
        writer.offload,
        writer.prepared.device,
        "chat" if chat else "raw",
        prompt_tokens,
        tuple(answer.end for answer in answers),
        tuple(map(str, tokenizer.convert_ids_to_tokens(writer.ends))),
        writer.prepared.sampling,
    )


def generate(model: str | Path, prompt: str, **options: Any) -> Generation:
    """Answer or continue one prompt; options and errors as those of `generate_all`."""
    return generate_all(model, [prompt], **options)[0]


def generate_all(
    model: str | Path,
    prompts: Sequence[str],
    *,
    chat: bool | None = None,
    num: int = 1,
    batch_size: int = 16,
    on_text: OnText | None = None,
    announce: bool = True,
    **options: Any,
) -> tuple[Generation, ...]:
    """Answer or continue each prompt `num` times, in the dtype that the model is stored in.

    Prompts are answered in batches, padded on the left. Greedy texts equal those of each prompt alone, up to
    rounding; sampled texts depend on the batch.

    Args:
        model: folder or hub id of a dense model, a stock MoE or our generic one; no remote code is run.
        chat: send each prompt as a user's message in the model's chat template, or continue it as it is; None does the
            first if there is a template.
        batch_size: prompts at once.
        on_text: is passed the text piece by piece as it is written, for one prompt and num=1; a raw text begins with
            its prompt.
        announce: log the format and the sampling.
        **options: the fields of `GenerationRecipe`. With `experts` only those are loaded; "auto" chooses them by the
            prompt (see `secretary`), for one prompt only. The result is that of the model restricted to them. With
            `offload_experts` experts stay on the CPU, and those that a layer's router chooses are copied to the device;
            `expert_memory` are the maximum bytes of experts on it, see `inference.offload.offload_experts`.

    Raises:
        RequestError: a value out of its range, an expert that does not exist, no chat template, no prompt, or one that
            leaves no room in the model's context.
        DataError: a prompt has a token that the model does not have.
        SourceError: no such model, or it has no tokenizer.
        CheckpointError: its files are missing or corrupt.
    """
    recipe = parse(GenerationRecipe, options)
    _check(prompts, recipe, num, batch_size, on_text)
    prepared = Prepared(model, recipe)
    _check_variety(num, prepared.sampling)
    as_chat, reason = _format(prepared, chat, recipe)
    encoded = [
        _encode(prepared.tokenizer, prompt, number, recipe.system, chat=as_chat)
        for number, prompt in enumerate(prompts)
    ]
    most = room_for(max(map(len, encoded)), recipe, CHAT_TOKENS if as_chat else RAW_TOKENS, prepared.context)
    if announce:
        logger.info("format: %s", reason)
    writer = prepared.load(prompts[0])
    if announce:
        logger.info("sampling: %s", prepared.sampling)
    stops = (*recipe.stops, *([prepared.turn_end.text] if as_chat and prepared.turn_end.text else []))
    if on_text is not None and not as_chat:
        on_text(prompts[0])
    found: list[Generation] = []
    for first in range(0, len(prompts), batch_size):
        batch = encoded[first : first + batch_size]
        started = time.monotonic()
        answers = writer.write(batch, limit=most, stops=stops, num=num, on_text=on_text)
        seconds = time.monotonic() - started
        for at, ids in enumerate(batch):
            own = answers[at * num : (at + 1) * num]
            found.append(generation(writer, prompts[first + at], len(ids), own, seconds, chat=as_chat))
    return tuple(found)


def _format(prepared: Prepared, chat: bool | None, recipe: GenerationRecipe) -> tuple[bool, str]:
    """Whether prompts are messages, and why, in words."""
    if chat is False:
        for name in ("system", "template"):
            if getattr(recipe, name) is not None:
                raise RequestError(
                    "is for the chat format.", field=name, value=getattr(recipe, name), fix="Leave out `chat=False`."
                )
        return False, "raw text, as asked"
    if not prepared.has_template:
        if chat or recipe.system is not None:
            raise RequestError(
                "the model has no chat template.",
                field="chat" if chat else "system",
                value=True if chat else recipe.system,
                fix="Use `chat=False`, which continues the text, or a file with a `template`.",
            )
        return False, "raw text, which the model continues (it has no chat template)"
    if chat:
        return True, "chat, as asked"
    return True, "chat, since the model has a chat template (raw would continue the text)"


def _encode(tokenizer: Any, prompt: str, number: int, system: str | None, *, chat: bool) -> list[int]:
    with naming_rows(prompt, first=number, field="prompt", what="prompt"):
        if chat:
            return chat_ids(tokenizer, user_message(prompt, system))
        ids = list(tokenizer(prompt)["input_ids"])
        if not ids and tokenizer.bos_token_id is not None:
            ids = [check_token(tokenizer, tokenizer.bos_token_id, "beginning-of-text token")]
    if not ids:
        raise RequestError("the prompt contains no tokens.", field="prompt", value=prompt, fix="Give some text.")
    return ids


def _check(prompts: Sequence[str], recipe: GenerationRecipe, num: int, batch_size: int, on_text: OnText | None) -> None:
    check_ranges({"num": (num, num >= 1, "at least 1"), "batch_size": (batch_size, batch_size >= 1, "at least 1")})
    if not prompts:
        raise RequestError("no prompt is given.", field="prompts", value=0, fix="Give at least one.")
    if recipe.experts == "auto" and len(prompts) > 1:
        raise RequestError(
            "experts are chosen for a single prompt, but there are several.",
            field="experts",
            value=recipe.experts,
            fix="Name the experts, or use one prompt at a time.",
        )
    if on_text is not None and (num > 1 or len(prompts) > 1):
        raise RequestError(
            "a single text can be streamed, but there are several.",
            field="stream",
            value=num * len(prompts),
            fix="Use one prompt and `num=1`, or do not stream.",
        )


def _check_variety(num: int, sampling: Sampling) -> None:
    if num > 1 and sampling.temperature == 0:
        raise RequestError(
            "greedy decoding gives the same text every time.",
            field="num",
            value=num,
            fix="Use `num=1`, or a `temperature` above 0.",
        )
