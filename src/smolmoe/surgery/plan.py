"""The plan: the full description of one conversion, made from configs and headers without loading a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from smolmoe.core import units
from smolmoe.core.checkpoint import Checkpoint
from smolmoe.core.claim import Claim
from smolmoe.errors import CheckpointError, SourceError
from smolmoe.families import DenseSpec, MoeTarget
from smolmoe.families.adapt import Kept, changed, kept
from smolmoe.families.engines import runs_in
from smolmoe.families.fit import adaptation
from smolmoe.families.resolve import resolve
from smolmoe.families.spec import read_spec
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.claim import make_claim
from smolmoe.surgery.configs import moe_config
from smolmoe.surgery.ffn import MoeLayer
from smolmoe.surgery.request import Layout, check_kernel, in_numbers, lay_out
from smolmoe.surgery.sources import (
    BASE,
    Source,
    SourceTensor,
    natural,
    source_tensors,
    source_warnings,
    specialist_tensors,
)
from smolmoe.surgery.tensors.program import OutTensor, Read, Role, kept_block
from smolmoe.surgery.tensors.tokenizer import same_tokenizer

NO_ROUTER_GRADIENT = (
    "Top-1 with renormalised gates: the single gate is always 1, so the router gets no gradient from the "
    "language-model loss. Use `top_k=2` or `gates='independent'`, or train with another router signal."
)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts. `active`: those one token uses, that is, all except the experts it is not routed to."""

    total: int
    active: int
    embedding: int

    def to_json(self) -> dict[str, int]:
        return {
            "total": self.total,
            "active": self.active,
            "total_without_embeddings": self.total - self.embedding,
            "active_without_embeddings": self.active - self.embedding,
        }


@dataclass(frozen=True)
class Plan:
    """One conversion in full: the request, the output, and the claim about it.

    Attributes:
        recipe: the request.
        spec: the dense source.
        target: the MoE class.
        layout: the request in numbers.
        sources: "base" and the specialists.
        tensors: the tensor program, in the order in which it is written.
        config: the output's config.json.
        claim: what to expect of the files.
        warnings: what the user should know before spending compute on it.
    """

    recipe: UpcycleRecipe
    spec: DenseSpec
    target: MoeTarget
    layout: Layout
    sources: dict[str, Source]
    tensors: tuple[OutTensor, ...]
    config: dict[str, Any]
    claim: Claim
    warnings: tuple[str, ...]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def parameters(self) -> Parameters:
        total = sum(t.size for t in self.tensors)
        idle = sum(t.size for t in self.tensors if t.role == "expert") * (self.layout.experts - self.layout.top_k)
        embedding = sum(t.size for t in self.tensors if _is_embedding(t.name))
        return Parameters(total, total - idle // self.layout.experts, embedding)

    @property
    def scoring(self) -> str:
        """How the router's logits become scores: "softmax" or "sigmoid"."""
        return self.target.scoring if self.layout.gate_scale is None else "sigmoid"

    def layer(self, index: int) -> MoeLayer:
        """The MoE of one layer, as blocks."""
        return MoeLayer(self.recipe, self.spec, self.target, self.layout, self.sources, index)

    @property
    def runs_in(self) -> dict[str, list[str]]:
        """For each engine the reasons why it cannot run the result; empty where it can."""
        return runs_in(self.config)

    @property
    def dense_parameters(self) -> Parameters:
        return count_dense(self.sources[BASE].tensors)


def count_dense(tensors: Mapping[str, SourceTensor]) -> Parameters:
    """Parameters of a dense model: every token uses all of them."""
    total = sum(tensor.size for tensor in tensors.values())
    return Parameters(total, total, sum(tensor.size for name, tensor in tensors.items() if _is_embedding(name)))


def _is_embedding(name: str) -> bool:
    return name.endswith(
        ("embed_tokens.weight", "lm_head.weight", "wte.weight", "wpe.weight", "embed_in.weight", "embed_out.weight")
    )


def make_plan(
    recipe: UpcycleRecipe,
    base: Checkpoint,
    specialists: dict[str, Checkpoint] | None = None,
    *,
    shared_neurons: Mapping[int, tuple[int, ...]] | None = None,
) -> Plan:
    """Plan a conversion.

    Args:
        recipe: the request.
        base: the dense source.
        specialists: checkpoint of each name in `recipe.expert`.
        shared_neurons: by MoE layer, the neurons of the shared expert in ascending order, where the request ranks them
            on text (`ranked_neurons`); without them the plan is that of the first neurons.

    Raises:
        SmolmoeError: a subclass that states what is wrong with the source or the request.
    """
    sources = {BASE: source_tensors(base, read_spec(base.folder), BASE)}
    spec = sources[BASE].spec
    recipe = in_numbers(recipe, spec)
    layout = replace(lay_out(recipe, spec), shared_neurons=shared_neurons or None)
    target = resolve(recipe.target, spec, layout.sizes(spec), recipe.runs_in)
    check_kernel(recipe, layout, sources[BASE])
    said = list(source_warnings(sources[BASE], BASE))
    for name, checkpoint in (specialists or {}).items():
        sources[name] = specialist_tensors(name, checkpoint, sources[BASE])
        said += same_tokenizer(checkpoint.folder, base.folder, field=f"expert {name}")
    tensors = tuple(_program(recipe, spec, target, layout, sources))
    _check_unique(tensors)
    claim = make_claim(recipe, spec, target, layout, tensors)
    return Plan(
        recipe,
        spec,
        target,
        layout,
        sources,
        tensors,
        moe_config(recipe, spec, target, layout, sources[BASE]),
        claim,
        (
            *said,
            *adaptation(spec, target, layout.sizes(spec)).notes,
            *_own_head(spec, tensors),
            *_warnings(recipe, layout),
        ),
    )


def _program(
    recipe: UpcycleRecipe, spec: DenseSpec, target: MoeTarget, layout: Layout, sources: dict[str, Source]
) -> Iterator[OutTensor]:
    """The output's tensors: those before the layers, each layer with its MoE, those after."""
    base = sources[BASE]
    averaged = [name for name in sources if name != BASE] if recipe.expert and recipe.attention == "average" else [BASE]
    seen: set[int] = set()
    for name, piece in _kept(spec, target, layout, base).items():
        layer = base.layer_of(name)
        tensors = [sources[source].tensors[piece.source] for source in averaged]
        reads = tuple(Read(source, tensor.disk_name) for source, tensor in zip(averaged, tensors, strict=True))
        out = f"lm.{name}" if target.name == "generic" else name
        dtype = recipe.dtype or base.tensors[piece.source].dtype
        role: Role = "new" if piece.filled else "kept"
        yield OutTensor(out, out, (), piece.shape, dtype, role, (kept_block(piece, reads),))
        if layer in layout.moe_layers and layer not in seen:
            seen.add(layer)
            yield from MoeLayer(recipe, spec, target, layout, sources, layer).tensors()


def _kept(spec: DenseSpec, target: MoeTarget, layout: Layout, base: Source) -> Kept:
    """Everything but the FFNs that become experts, as the target has it, in natural order."""
    ffn = {name for i in layout.moe_layers for name in base.ffn_names(i)}
    shapes = {name: info.shape for name, info in base.tensors.items() if name not in ffn}
    found = changed(kept(shapes), adaptation(spec, target, layout.sizes(spec)).changes)
    return {name: found[name] for name in sorted(found, key=lambda name: natural(name, spec))}


def _own_head(spec: DenseSpec, tensors: tuple[OutTensor, ...]) -> Iterator[str]:
    """What it costs that the tie between embedding and output head is undone."""
    for head in tensors if spec.tied else ():
        if head.name == "lm_head.weight":
            yield f"The separate output head adds {units.size(head.nbytes)} to the files."


def _check_unique(tensors: tuple[OutTensor, ...]) -> None:
    names = [tensor.name for tensor in tensors]
    if len(names) != len(set(names)):
        raise SourceError("two output tensors would have the same name: the source does not match its config.")
    for tensor in tensors:
        if sum(block.size for block in tensor.blocks) != tensor.size:
            raise CheckpointError("the blocks of a tensor do not fill it.", field="tensor", value=tensor.name)


def _tied(layout: Layout) -> str:
    rest = layout.experts - layout.top_k
    tied = f"A zero router ties all {layout.experts} experts: every token goes to the same {layout.top_k}"
    breaks = "`routing.sample` or `routing.noise` for the first steps, or loss-free balancing, breaks the tie"
    if layout.gate_scale is None:
        return f"{tied}, and the other {rest} stay dead. Use a random router, unless {breaks}."
    return f"{tied} until training moves their rows, so the other {rest} start late. In training {breaks}."


def _warnings(recipe: UpcycleRecipe, layout: Layout) -> Iterator[str]:
    if recipe.router == "zero" and layout.top_k < layout.experts:
        yield _tied(layout)
    if layout.top_k == 1 and layout.gate_scale is None:
        yield NO_ROUTER_GRADIENT
    if recipe.shared == "residual" and recipe.diversify == "none":
        yield "Residual experts must differ to be useful: half of the gate and up neurons of each are re-initialised."
    if layout.width % 8:
        yield (
            f"Experts of width {layout.width} run in float32; in 16 bits transformers' default kernel, grouped_mm, "
            "needs a multiple of 8: load 16-bit models with experts_implementation='eager'."
        )
    if layout.top_k == layout.experts and layout.experts > 1:
        yield "Every token uses every expert (K = E): the model is not sparse."
