"""A model in memory that writes: loading, one batch of answers, and how each ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import StoppingCriteriaList

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.devices import kind, pick_device
from smolmoe.core.model_config import check_decodes
from smolmoe.data.messages import has_template
from smolmoe.errors import RequestError
from smolmoe.inference.chat_format import TurnEnd, turn_end, use_template
from smolmoe.inference.decoding import fast_decoding
from smolmoe.inference.expert_choice import labels, load_experts
from smolmoe.inference.kept_cache import KeptCache
from smolmoe.inference.offload import Traffic, offload_experts
from smolmoe.inference.sampling import (
    answer_text,
    answering_tokenizer,
    end_tokens,
    padded,
    plain_generation,
    until_end,
)
from smolmoe.inference.selective import TensorBytes, generation_config
from smolmoe.inference.settings import Sampling, resolve_sampling
from smolmoe.inference.streaming import OnText, Watch, until_stop
from smolmoe.moe.kernels.register import set_experts
from smolmoe.moe.loading import Skeleton, load_config, load_model
from smolmoe.recipe.generation import GenerationRecipe

End = Literal["end_token", "stop_text", "length", "interrupted"]


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
class Answer:
    """One answer.

    Attributes:
        text: without the prompt and without the stop text.
        ids: its tokens, the end token included.
        end: what ended it.
    """

    text: str
    ids: tuple[int, ...]
    end: End


class Prepared:
    """A model's files before its weights are read: what a request needs to be checked.

    Attributes:
        folder, device: of the model.
        tokenizer: with the request's chat template.
        context: the model's positions; None if they are not limited.
        sampling: settings of the request.
        turn_end: what ends an answer in chat format.

    Raises:
        RequestError: no such device, a template that cannot be read, or a value of the model's that is out of range.
        SourceError: no such model, or it has no tokenizer.
    """

    def __init__(self, model: str | Path, recipe: GenerationRecipe):
        self.device = pick_device(recipe.device)
        if recipe.expert_memory is not None and not recipe.offload_experts:
            raise RequestError(
                "a budget needs offloaded experts.",
                field="expert_memory",
                value=recipe.expert_memory,
                fix="Set `offload_experts=True`, too.",
            )
        self.folder = open_checkpoint(model, field="model").folder
        check_decodes(self.folder, "model")
        self.tokenizer = answering_tokenizer(self.folder)
        if recipe.template is not None:
            use_template(self.tokenizer, recipe.template)
        config = load_config(self.folder)
        self.context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.sampling: Sampling = resolve_sampling(recipe, generation_config(self.folder, config))
        self.turn_end: TurnEnd = turn_end(self.tokenizer)
        self._recipe = recipe

    @property
    def has_template(self) -> bool:
        return has_template(self.tokenizer)

    def load(self, prompt: str | None = None) -> Writer:
        """Read the weights.

        Args:
            prompt: to choose the experts by, for `experts="auto"`.

        Raises:
            RequestError, SourceError, CheckpointError: as `generate_all`.
        """
        recipe = self._recipe
        if recipe.experts is None:
            network, experts = load_model(self.folder, dtype=Skeleton(self.folder).stored_dtype()), None
        else:
            network, experts = _load_some(self.folder, recipe.experts, prompt or "")
        set_experts(network, device=self.device)
        traffic = None
        if recipe.offload_experts:
            traffic = offload_experts(network, device=self.device, expert_memory=recipe.expert_memory)
        else:
            network.to(self.device)
        return Writer(self, network, experts, traffic)


class Writer:
    """A loaded model.

    Attributes:
        prepared: its files and settings.
        network: of transformers.
        experts: the only ones that are loaded; None if all are, or the model is dense.
        offload: transfers to the device, if experts stay on the CPU.
        ends: the tokens that end an answer.
    """

    def __init__(self, prepared: Prepared, network: Any, experts: LoadedExperts | None, offload: Traffic | None):
        self.prepared, self.network, self.experts, self.offload = prepared, network, experts, offload
        self.ends = end_tokens(network, prepared.tokenizer, prepared.turn_end)

    def write(
        self,
        prompts: Sequence[list[int]],
        *,
        limit: int,
        stops: Sequence[str] = (),
        num: int = 1,
        seed: int | None = None,
        on_text: OnText | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        kept: KeptCache | None = None,
    ) -> list[Answer]:
        """Answer each prompt `num` times, in one batch padded on the left.

        Args:
            prompts: token ids.
            limit: most tokens of an answer.
            seed: instead of the request's.
            on_text: is passed the text of the first answer as it comes.
            interrupted: asked after each token; true ends the answers.
            kept: keys and values of an earlier answer, for a single prompt; replaced by those of this one.
        """
        tokenizer, sampling = self.prepared.tokenizer, self.prepared.sampling
        ids, mask = padded(prompts, self.prepared.device, side="left", value=self.ends[0] if self.ends else 0)
        rows = [prompt for prompt in prompts for _ in range(num)]
        start = ids.shape[1]
        watch = Watch(tokenizer, rows, start, self.ends, stops, on_text, interrupted)
        options = {"max_new_tokens": limit, "num_return_sequences": num, **sampling.options()}
        if kept is not None and (cache := kept.take(prompts[0])) is not None:
            options["cache"] = cache
        network = self.network
        device = self.prepared.device
        used = [torch.device(device)] if kind(device) == "cuda" else []  # by default all GPUs, which would be started
        with torch.no_grad(), torch.random.fork_rng(used), plain_generation(network, self.ends), fast_decoding(network):
            torch.manual_seed(sampling.seed if seed is None else seed)
            out = network.generate(
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=StoppingCriteriaList([watch]),
                return_dict_in_generate=True,
                **options,
            )
        sequences = out.sequences.tolist()
        if kept is not None:
            kept.keep(out.cache, sequences[0])
        found = [
            self._answer(prompt, answer[start:], watch, row, stops)
            for row, (prompt, answer) in enumerate(zip(rows, sequences, strict=True))
        ]
        if watch.pieces is not None:
            watch.pieces.end(found[0].text)
        return found

    def _answer(self, prompt: list[int], answer: list[int], watch: Watch, row: int, stops: Sequence[str]) -> Answer:
        ids = until_end(answer[: watch.lengths[row]], self.ends)
        text = until_stop(answer_text(self.prepared.tokenizer, prompt, ids), stops)
        end: End = "length" if watch.lengths[row] is None else "stop_text" if watch.stopped[row] else "interrupted"
        return Answer(text, tuple(ids), "end_token" if end != "stop_text" and ids[-1] in self.ends else end)


def _load_some(folder: Path, asked: str | Sequence[str | int], prompt: str) -> tuple[Any, LoadedExperts]:
    """The model on the CPU with some experts."""
    selective, indices, choice = load_experts(folder, asked, prompt)
    names = labels(selective.config, indices, selective.experts)
    return selective.model, LoadedExperts(names, indices, choice.confidence if choice else None, selective.bytes())


def room_for(given: int, recipe: GenerationRecipe, default: int, context: int | None) -> int:
    """The most tokens of an answer after a prompt of `given` tokens.

    Args:
        default: if the request does not say; fewer if the context ends before.

    Raises:
        RequestError: the context has no room for the prompt, or for the number of tokens that is asked for.
    """
    asked = recipe.max_new_tokens
    if context is not None and given >= context:
        raise RequestError(
            f"{given} tokens exceed the model's context of {context}.",
            field="prompt",
            value=f"{given} tokens",
            fix="Shorten it.",
        )
    if asked is None:
        return default if context is None else min(default, context - given)
    if context is not None and given + asked > context:
        raise RequestError(
            f"with a prompt of {given} tokens it exceeds the model's context of {context}.",
            field="max_new_tokens",
            value=asked,
            fix=f"Use at most {context - given}.",
        )
    return asked
