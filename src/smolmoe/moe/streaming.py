"""Run a causal language model whose weights need not fit in memory, decoder layer by decoder layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from smolmoe.errors import SourceError
from smolmoe.moe.loading import Skeleton, load_tokenizer
from smolmoe.moe.structure import ffn_parts, find_layers

GIB = 1 << 30
Transform = Callable[[str, torch.Tensor], torch.Tensor]


class StreamedModel:
    """A checkpoint folder as a transformers model that holds at most `resident_bytes` of decoder layers at a time.

    Embeddings, final norm and head are in memory throughout. Each decoder layer is read just before its forward; those
    that fit stay, the others go back to the meta device after it. All transformers features work (`forward`,
    `generate` with its KV cache), except gradients. Use it as a context manager:

        with StreamedModel(folder) as streamed:
            logits = streamed.model(input_ids).logits  # [B, S, V]

    Args:
        folder: config and safetensors, in one file or in shards, of any dense or MoE causal LM; or its skeleton, which
            is then this model's.
        dtype: of the parameters and the computation; a skeleton has its own.
        stored_dtype: round every tensor to this dtype first, as if it had been saved in it.
        memory: the same model in another dtype: decoder layers that it holds are cast, not read again.
        resident_bytes: memory for decoder layers, in bytes. One layer at least is always held.
        device: where the computation happens.
        finite: refuse weights that are NaN or infinite; a skeleton decides it itself.

    Attributes:
        skeleton: what it is filled from.
        model: the transformers model.
        layers: its decoder layers, L modules.
        tokenizer: the folder's tokenizer, or None.
        current: index of the batch in flight in `logits`, for the hooks of who wants to know.

    Raises:
        SourceError: no such model, or one that transformers cannot run.
        CheckpointError: missing, truncated or corrupt files; tensors absent, left over or of another shape.
    """

    def __init__(
        self,
        folder: str | Path | Skeleton,
        *,
        dtype: torch.dtype = torch.float32,
        stored_dtype: torch.dtype | None = None,
        memory: StreamedModel | None = None,
        resident_bytes: int = 8 * GIB,
        device: str = "cpu",
        finite: bool = True,
    ):
        self.skeleton = folder if isinstance(folder, Skeleton) else Skeleton(folder, dtype=dtype, finite=finite)
        self.model = self.skeleton.model
        self.folder = self.skeleton.folder
        self.current = 0
        self._stored_dtype, self._memory, self._device = stored_dtype, memory, device
        self._transform: Transform | None = None
        self._originals: dict[int, dict[str, torch.Tensor]] = {}  # layer -> parameters that are transformed now
        path, self.layers = find_layers(self.model)
        self._prefixes = [f"{path}.{i}." for i in range(len(self.layers))]
        self._empty = [dict(layer.named_parameters()) for layer in self.layers]
        self._on_disk = self._tensors_by_layer()
        self._stays = self._resident(resident_bytes)
        self._loaded: set[int] = set()
        self._shared: dict[int, dict[str, Any]] = {}  # batch -> keys and values that its layers left for later ones
        # Set while `logits` is at work: the layer to stop after, and what the layers before it gave.
        self._depth: int | None = None
        self._carried: Any = None
        for index, layer in enumerate(self.layers):
            layer.forward = partial(self._run_layer, index, layer.forward)
        self._load_rest()

    def __enter__(self) -> StreamedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release all memory; the model cannot be used afterwards."""
        self.model.to("meta")
        self._loaded.clear()

    @cached_property
    def tokenizer(self) -> Any | None:
        return load_tokenizer(self.folder)

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def resident(self) -> bool:
        """Whether all layers fit, so that each is read only once."""
        return all(self._stays)

    def stored_dtype(self) -> torch.dtype:
        """The dtype that the files are in."""
        return self.skeleton.stored_dtype()

    @contextmanager
    def transformed(self, transform: Transform) -> Iterator[None]:
        """Within, each decoder layer runs with what `transform` makes of its parameters; afterwards they are as before.

        Args:
            transform: (parameter name, tensor) -> tensor of the same shape. A layer may run several times: it must give
                the same each time.
        """
        self._transform = transform
        try:
            yield
        finally:
            self._transform = None

    def mlp(self, index: int) -> tuple[nn.Module, ...]:
        """The modules whose outputs add up to layer `index`'s FFN output, see `ffn_parts`."""
        return ffn_parts(self.layers[index])

    @torch.no_grad()
    def logits(
        self, batches: Sequence[Mapping[str, Any]], after_layer: Callable[[], None] = lambda: None
    ) -> Iterator[torch.Tensor]:
        """The logits [B, S, V] of every batch in turn, each layer being read only once for all of them.

        Layer by layer, each batch runs through the model with the layers before replaced by what they gave. That is the
        model's own forward, so masks, positions and whatever else a class hands to its layers are its own too.

        Args:
            batches: keyword arguments of the model's forward.
            after_layer: called when all batches have passed a layer.
        """
        carried: list[Any] = [None] * len(batches)
        self._shared.clear()
        for depth in range(len(self.layers)):
            for index, batch in enumerate(batches):
                carried[index] = self._layer_output(depth, carried[index], index, batch)
            self._release(depth)
            after_layer()
        for index, batch in enumerate(batches):
            with self._resuming(len(self.layers), carried[index], index):
                logits = self.model(**batch, use_cache=False).logits
            carried[index] = None
            yield logits

    def _layer_output(self, depth: int, carried: Any, index: int, batch: Mapping[str, Any]) -> Any:
        with self._resuming(depth, carried, index):
            try:
                self.model(**batch, use_cache=False)
            except _LayerDone as done:
                return done.output
        raise SourceError(
            f"decoder layer {depth} is not used in the forward pass.", field="model", value=type(self.model).__name__
        )

    @contextmanager
    def _resuming(self, depth: int, carried: Any, index: int) -> Iterator[None]:
        self._depth, self._carried, self.current = depth, carried, index
        try:
            yield
        finally:
            self._depth, self._carried, self.current = None, None, 0

    def _run_layer(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._depth is not None and index < self._depth:
            return self._carried
        self._load_layer(index)
        shared = kwargs.get("shared_kv_states")
        if self._depth is not None and shared is not None:  # keys and values of earlier layers, which did not run now
            shared.update(self._shared.get(self.current, {}))
        output = forward(*args, **kwargs)
        if self._depth is not None:
            if shared is not None:
                self._shared[self.current] = dict(shared)
            raise _LayerDone(output)
        self._release(index)
        return output

    def _tensors_by_layer(self) -> list[list[str]]:
        """Names on disk of each layer's tensors; the last list holds those of no layer."""
        groups: list[list[str]] = [[] for _ in range(len(self.layers) + 1)]
        owner = {prefix: index for index, prefix in enumerate(self._prefixes)}
        depth = self._prefixes[0].count(".")
        for disk, name in self.skeleton.names.items():
            prefix = ".".join(name.split(".")[:depth]) + "."
            groups[owner.get(prefix, len(self.layers))].append(disk)
        return groups

    def _resident(self, budget: int) -> list[bool]:
        sizes = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in self.layers]
        if sum(sizes) <= budget:
            return [True] * len(sizes)
        budget -= max(sizes)  # room for the layer that is passing through
        stays = []
        for size in sizes:
            stays.append(size <= budget)
            budget -= size
        return stays

    def _load_rest(self) -> None:
        self._fill(len(self.layers))
        self.model.tie_weights(missing_keys=set(self.skeleton.missing), recompute_mapping=False)
        self.model.requires_grad_(False)
        # Buffers are few and small, in layers or not.
        for name, buffer in self.model.named_buffers():
            parent, _, key = name.rpartition(".")
            setattr(self.model.get_submodule(parent), key, buffer.to(self._device))

    def _load_layer(self, index: int) -> None:
        if index not in self._loaded:
            if not self._take_from_memory(index):
                self._fill(index)
            self.layers[index].requires_grad_(False)
            self._loaded.add(index)
        if self._transform is not None and index not in self._originals:
            parameters = dict(self.layers[index].named_parameters())
            self._originals[index] = {name: parameter.data for name, parameter in parameters.items()}
            for name, parameter in parameters.items():
                parameter.data = self._transform(self._prefixes[index] + name, parameter.data)

    def _take_from_memory(self, index: int) -> bool:
        """Cast a layer that the same model in another dtype holds; False if it must be read."""
        memory = self._memory
        if memory is None or index not in memory._loaded:
            return False
        theirs = dict(memory.layers[index].named_parameters())
        if memory.layers[index].state_dict().keys() - theirs.keys():  # buffers of the files are read with the layer
            return False
        for name, empty in self._empty[index].items():
            self._set(index, name, nn.Parameter(theirs[name].data.to(empty.dtype), requires_grad=False))
        return True

    def _fill(self, group: int) -> None:
        self.skeleton.fill(self._on_disk[group], device=self._device, stored_dtype=self._stored_dtype)

    def _release(self, index: int) -> None:
        parameters = dict(self.layers[index].named_parameters())
        for name, original in self._originals.pop(index, {}).items():
            parameters[name].data = original
        if self._stays[index] or index not in self._loaded:
            return
        for name, parameter in self._empty[index].items():
            self._set(index, name, parameter)
        self._loaded.discard(index)

    def _set(self, index: int, name: str, parameter: nn.Parameter) -> None:
        path, _, key = name.rpartition(".")
        setattr(self.layers[index].get_submodule(path), key, parameter)


class _LayerDone(Exception):  # noqa: N818 - a way out of the forward, no error
    """Carries a layer's output out of the model's forward."""

    def __init__(self, output: Any):
        self.output = output


def random_like(names: Iterable[str], seed: int) -> Transform:
    """A transform that resamples the named parameters from N(own mean, own standard deviation).

    Of a stack of experts [E, ...] one is sampled and repeated: E times the numbers would take E times as long, and the
    model would be no more random.
    """
    import zlib

    chosen = frozenset(names)

    def redraw(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in chosen:
            return tensor
        # By name, so that a layer that is read twice is the same both times.
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        drawn = torch.randn(tensor.shape[-2:], generator=generator).to(tensor.device)
        values = tensor.float()
        drawn.mul_(values.std()).add_(values.mean())
        return torch.empty_like(tensor).copy_(drawn)

    return redraw
