"""The probed model, with its tokenizer and its way of cutting text."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.progress import Progress
from smolmoe.data.same_tokenizer import tokenizer_difference
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import Skeleton, load_model, load_tokenizer
from smolmoe.moe.names import expert_names, named_layers
from smolmoe.moe.routing import unread_routers
from smolmoe.probing.counting import RoutingCounts, Runner, count_routing
from smolmoe.probing.documents import TaggedDocument, read_tagged, start_token
from smolmoe.probing.inputs import Windows
from smolmoe.probing.token_types import token_types
from smolmoe.recipe.probe import ProbeOptions
from smolmoe.results.probe import ModelFacts

logger = logging.getLogger(__name__)

BATCH_TOKENS = 4096  # in one forward pass


@dataclass(frozen=True)
class Subject:
    """The MoE, its tokenizer, and the windows of its text.

    Attributes:
        types: the type of every token id, [V].
    """

    folder: Path
    runner: Runner
    tokenizer: Any
    windows: Windows
    types: torch.Tensor
    options: ProbeOptions

    @property
    def model(self) -> Any:
        return self.runner.model

    @property
    def layers(self) -> list[int]:
        """Indices of the MoE layers."""
        return self.runner.layers

    def documents(self, data: str, report: Progress | None, *, tokens: int | None = None) -> Iterator[TaggedDocument]:
        """The tagged documents of a source, tokenised; `tokens` is a further limit per domain."""
        options = self.options
        limits = [limit for limit in (options.tokens, tokens) if limit is not None]
        found = read_tagged(
            data,
            self.tokenizer,
            by=options.by,
            document_tokens=options.document_tokens,
            tokens=min(limits, default=None),
            seed=options.seed,
        )
        for number, document in enumerate(found, 1):
            if report is not None:
                report("Routing the text", number, 0)
            yield document

    def count(self, data: str, report: Progress | None, *, tokens: int | None = None) -> RoutingCounts:
        """The routers' choices on a source; `tokens` as for `documents`."""
        windows = self.windows
        return count_routing(
            self.runner,
            self.documents(data, report, tokens=tokens),
            self.types,
            start=windows.start,
            length=windows.length,
            batch_tokens=windows.batch_tokens,
        )

    def facts(self) -> ModelFacts:
        config, names = self.model.config, expert_names(self.model.config)
        guided = named_layers(config)
        return ModelFacts(
            folder=str(self.folder),
            class_name=type(self.model).__name__,
            experts=self.runner.experts,
            top_k=self.runner.top_k,
            layers=self.layers,
            names=None if names is None else list(names),
            named_layers=None if guided is None else list(guided),
        )


def open_subject(folder: str | Path, options: ProbeOptions, device: str) -> Subject:
    """Load an MoE for a probe.

    Raises:
        SourceError: no such model, a dense one, or one without tokenizer.
        CheckpointError: its files are missing or corrupt.
        RequestError: windows longer than the model's context, or a list of names that does not fit the experts.
    """
    model, where = _load(folder, device)
    runner = Runner(model)
    for layer, kind in unread_routers(model).items():
        logger.warning("Layer %d is left out: of its %s transformers records no decisions.", layer, kind)
    tokenizer = _tokenizer(where, folder)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and options.length > context:
        raise RequestError("longer than the model's context.", field="length", value=options.length, fix=f"{context}.")
    names = expert_names(model.config)
    if names is not None and len(names) != runner.experts:
        raise SourceError(
            f"{len(names)} names for {runner.experts} experts.", field="expert_names", value=", ".join(map(str, names))
        )
    windows = Windows(start_token(tokenizer), options.length, BATCH_TOKENS)
    types = token_types(tokenizer, model.get_input_embeddings().weight.shape[0])
    return Subject(where, runner, tokenizer, windows, types, options)


def open_beside(folder: str | Path, subject: Subject, field: str) -> Any:
    """Load a model that reads the same tokens.

    Raises:
        RequestError: its tokenizer differs.
    """
    model, where = _load(folder, str(subject.model.device))
    said = tokenizer_difference(_tokenizer(where, folder), subject.tokenizer, names=(field, "model"))
    if said is not None:
        raise RequestError(
            f"its tokenizer differs ({said}), so the two cannot be compared token by token.", field=field, value=folder
        )
    return model


def _load(folder: str | Path, device: str) -> tuple[Any, Path]:
    skeleton = Skeleton(folder)
    # CPUs are slow in 16 bits; other devices use the stored dtype, as in serving.
    dtype = torch.float32 if device == "cpu" else skeleton.stored_dtype()
    return load_model(skeleton.folder, dtype=dtype, device=device), skeleton.folder


def _tokenizer(where: Path, folder: str | Path) -> Any:
    tokenizer = load_tokenizer(where)
    if tokenizer is None:
        raise SourceError("the model has no tokenizer.", field="model", value=str(folder), fix="Put its files there.")
    return tokenizer
