"""The algebra: a dense FFN becomes routed experts, a shared expert and a router, as blocks of the tensor program.

Gates that are renormalised sum to 1 over the chosen experts, so for ANY router

- copies give the dense output: sum_e g_e FFN(x) = FFN(x);
- with granularity G, expert e holds shard e mod G, the G experts of a group share their router row and are chosen
  together with equal gates, which sum to 1/G per shard: down * G restores the dense output (arXiv 2410.07524, whose
  own scaling spreads over gate, up and down and is not exact, SiLU not being homogeneous);
- a full shared expert and copies: 1/2 each;
- a shared width W: its W neurons are always active, the routed experts are made from the other F - W;
- residual: the shared expert is the dense FFN, routed down projections are 0.

Independent gates, c sigmoid(logit), sum to 1 only at zero logits, where each is c / 2. Their c holds the factors above
(c = 2 G / K, half of it with a full shared expert), so that no routed weight is scaled or rounded.

Random subsets (`subsets: random, complementary`) are chosen one by one: a token gets each neuron once on
average, not exactly.

A sigmoid gate with zero weights halves the shared expert, which its down projection compensates for. Only
down projections are scaled. Biases of down follow their own sums: gates sum to 1, so a routed bias is not scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from smolmoe.families import DenseSpec, ExpertNames, MoeTarget, Slot
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.request import Layout
from smolmoe.surgery.sources import BASE, Source
from smolmoe.surgery.tensors.diversify import WAYS, Perturb, drop
from smolmoe.surgery.tensors.initialisers import generator
from smolmoe.surgery.tensors.program import Block, OutTensor, Read, Region, Role

# Of random rows. Independent gates change the function by what the logits are away from zero.
ROUTER_STD = {"normalised": 0.02, "independent": 0.002}
RESIDUAL_DROP = 0.5


@dataclass(frozen=True)
class Scales:
    """Factors on down projections and their biases; a routed weight of 0 means zeros."""

    routed: float
    routed_bias: float
    shared: float


def scales(shared: str | int, parts: int, gated: bool, *, independent: bool = False) -> Scales:
    """The factors that preserve the function; see the module.

    Args:
        shared: as in the recipe.
        parts: G, each routed expert is 1/G of the routed neurons.
        gated: the shared expert is halved by its gate.
        independent: the gates carry the factor on routed experts.
    """
    found = _scales(shared, parts, gated)
    if not independent or not found.routed:
        return found
    return Scales(routed=1.0, routed_bias=found.routed_bias / found.routed, shared=found.shared)


def _scales(shared: str | int, granularity: int, gated: bool) -> Scales:
    undo_gate = 2.0 if gated else 1.0
    if shared == "none":
        return Scales(routed=float(granularity), routed_bias=1.0, shared=0.0)
    if shared == "full":
        return Scales(routed=granularity / 2, routed_bias=0.5, shared=undo_gate / 2)
    if shared == "residual":
        return Scales(routed=0.0, routed_bias=0.0, shared=undo_gate)
    return Scales(routed=float(granularity), routed_bias=0.0, shared=undo_gate)


@dataclass(frozen=True)
class MoeLayer:
    """The MoE of one layer: `tensors()` are its part of the program."""

    recipe: UpcycleRecipe
    spec: DenseSpec
    target: MoeTarget
    layout: Layout
    sources: dict[str, Source]
    layer: int

    def tensors(self) -> Iterator[OutTensor]:
        yield from self._router()
        yield from self._routed()
        if self.layout.shared_width:
            yield from self._shared()

    # -- names ------------------------------------------------------------------------------------------------

    @property
    def _stem(self) -> str:
        mlp = self.spec.mlp
        if self.target.name == "generic":
            return f"lm.{mlp.layers}.{self.layer}.{mlp.module}."
        return f"{mlp.layers}.{self.layer}."

    @property
    def _centred(self) -> bool:
        family = self.spec.family
        return family is not None and family.centred and self.target.name != "generic"

    @property
    def _dtype(self) -> str:
        base = self.sources[BASE]
        return self.recipe.dtype or base.tensors[base.slot_name(self.layer, self.spec.mlp.up)].dtype

    def _out(
        self,
        name: str,
        memory: str,
        region: Region,
        shape: tuple[int, ...],
        role: Role,
        *blocks: Block,
        dtype: str = "",
    ) -> OutTensor:
        return OutTensor(self._stem + name, self._stem + memory, region, shape, dtype or self._dtype, role, blocks)

    # -- router -----------------------------------------------------------------------------------------------

    def _router(self) -> Iterator[OutTensor]:
        names, e, d = self.target.names, self.layout.experts, self.spec.hidden_size
        rows = self.router_rows()
        yield self._out(names.router, names.memory_router, (), (e, d), "router", rows)
        if names.selection_bias:
            shape = (1, e) if names.selection_bias_row else (e,)
            memory = names.memory_selection_bias or names.selection_bias
            yield self._out(names.selection_bias, memory, (), shape, "new", Block(shape), dtype="float32")
        if self.layout.shared_width and names.shared_gate:
            yield self._out(names.shared_gate, names.shared_gate, (), (1, d), "new", Block((1, d)))

    def router_rows(self) -> Block:
        """The router's weight."""
        # Residual's routed output is 0 for any choice, so its experts need no groups and may diverge immediately.
        repeat = 1 if self.recipe.shared == "residual" else self.layout.granularity
        fill = {"random": "normal", "zero": "zeros", "domains": "rows"}[self.recipe.router]
        shape = (self.layout.experts, self.spec.hidden_size)
        std = ROUTER_STD[self.recipe.gates] if self.recipe.router_std is None else self.recipe.router_std
        return Block(shape, fill=fill, std=std, repeat=repeat, stream=f"layer.{self.layer}.router")  # type: ignore[arg-type]

    # -- routed experts ---------------------------------------------------------------------------------------

    def _expert_source(self, expert: int) -> str:
        """Specialists take turns over groups: group g comes from specialist g mod N."""
        names = [name for name in self.sources if name != BASE] or [BASE]
        return names[expert // self.layout.parts % len(names)]

    @property
    def _ranked(self) -> Sequence[int] | None:
        return self.layout.shared_neurons[self.layer] if self.layout.shared_neurons else None

    @cached_property
    def _shared_neurons(self) -> Sequence[int]:
        return self._ranked or range(self.layout.shared_width)

    @cached_property
    def _routed_neurons(self) -> Sequence[int]:
        """The neurons that routed experts are made from, ascending."""
        if not isinstance(self.recipe.shared, int):
            return range(self.spec.ffn_size)
        held = set(self._shared_neurons)
        return _as_run([i for i in range(self.spec.ffn_size) if i not in held])

    def expert_neurons(self, expert: int) -> Sequence[int]:
        """The neurons of the dense FFN that a routed expert holds, ascending."""
        parts, width, neurons = self.layout.parts, self.layout.width, self._routed_neurons
        part = expert % parts
        if parts > 1 and self.recipe.subsets != "groups":
            drawn = expert if self.recipe.subsets == "random" else expert // parts
            part = 0 if self.recipe.subsets == "random" else part
            rng = generator(self.recipe.seed, f"layer.{self.layer}.subset.{drawn}")
            places = rng.permutation(len(neurons))[part * width : (part + 1) * width]
            return _as_run([neurons[i] for i in sorted(places.tolist())])
        return neurons[part * width : (part + 1) * width]

    def _perturb(self, expert: int, slot: str, *, bias: bool) -> Perturb | None:
        recipe, axis, name = self.recipe, int(slot == "down"), f"layer.{self.layer}.expert.{expert}"
        if bias and slot == "down":  # one value for each hidden unit, none for neurons
            return None
        if recipe.shared == "residual" and recipe.diversify == "none":
            return drop(RESIDUAL_DROP, name, axis)
        way = WAYS.get(recipe.diversify)
        return None if way is None or (bias and not way.biases) else way.make(recipe, name, slot, axis)

    def projection(self, expert: int, name: str, *, bias: bool = False) -> Block:
        """One projection ("gate", "up", "down") of one routed expert."""
        factors, down = self._scales, name == "down"
        block = self._copy(self._expert_source(expert), name, self.expert_neurons(expert), bias=bias)
        factor = (factors.routed_bias if bias else factors.routed) if down else 1.0
        if factor == 0.0:
            return Block(block.shape)
        perturb = self._perturb(expert, name, bias=bias)
        return replace(
            block,
            scale=factor,
            perturb=perturb,
            stream=f"layer.{self.layer}.expert.{expert}.{name}{'.bias' if bias else ''}" if perturb else "",
        )

    @property
    def _scales(self) -> Scales:
        independent = self.layout.gate_scale is not None
        return scales(self.recipe.shared, self.layout.parts, self.target.shared_gated, independent=independent)

    def dense_projection(self, name: str, *, bias: bool = False) -> Block:
        """The base's projection, complete and unchanged."""
        return self._copy(BASE, name, range(self.spec.ffn_size), bias=bias)

    def _copy(self, source: str, name: str, neurons: Sequence[int], *, bias: bool = False) -> Block:
        """Neurons of a dense projection, oriented [out, in]; a bias of down has no neurons: used in full."""
        mlp, d, width = self.spec.mlp, self.spec.hidden_size, len(neurons)
        slot: Slot | None = {"gate": mlp.gate, "up": mlp.up, "down": mlp.down}[name]
        assert slot is not None
        origin = self.sources[source]
        read = Read(source, origin.tensors[origin.slot_name(self.layer, slot, "bias" if bias else "weight")].disk_name)
        if bias and name == "down":
            return Block((d,), (read,))
        offset = slot.half * self.spec.ffn_size if slot.half else 0
        run = isinstance(neurons, range)
        first, last = (neurons[0], neurons[-1] + 1) if run else (0, self.spec.ffn_size)
        part: tuple[int, int] | None = (first + offset, last + offset)
        if slot.half is None and last - first == self.spec.ffn_size:
            part = None  # the whole matrix: it is copied unchanged, whichever axis its neurons are on
        order = None if run else tuple(neurons)
        if bias:
            return Block((width,), (read,), span=part, order=order)
        shape = (d, width) if name == "down" else (width, d)
        centred = 0 if name == "down" and self._centred else None
        return Block(shape, (read,), int(name == "down"), part, mlp.transposed, order, centred=centred)

    def _routed(self) -> Iterator[OutTensor]:
        names = self.target.names.experts
        if "{e}" in names.down:
            for expert in range(self.layout.experts):
                yield from self._separate(names, expert)
        else:
            yield from self._stacked(names)

    def _separate(self, names: ExpertNames, expert: int) -> Iterator[OutTensor]:
        """One tensor per projection and expert."""
        width, memory = self.layout.width, self.target.names.memory_experts
        rows = {"gate": (0, width), "up": (width, 2 * width)}
        for name, disk in (("gate", names.gate), ("up", names.up), ("down", names.down)):
            assert disk is not None
            block = self.projection(expert, name)
            region: Region = (expert,) if name == "down" else (expert, rows[name])
            stack = f"{memory}.{'down_proj' if name == 'down' else 'gate_up_proj'}"
            yield self._out(disk.format(e=expert), stack, region, block.shape, "expert", block)

    def _stacked(self, names: ExpertNames) -> Iterator[OutTensor]:
        """Stacks over experts, in the same shape as in memory: [E, 2I, D] (plain FFNs: [E, I, D]) and [E, D, I]."""
        e, d, width = self.layout.experts, self.spec.hidden_size, self.layout.width
        inner = ("gate", "up") if self.spec.mlp.gated else ("up",)
        disk_in = names.gate_up if self.spec.mlp.gated else names.up
        assert disk_in is not None
        memory_in = f"{self.target.names.memory_experts}.{'gate_up_proj' if self.spec.mlp.gated else 'up_proj'}"
        memory_down = f"{self.target.names.memory_experts}.down_proj"
        rows = len(inner) * width
        for bias in (False, True) if self.spec.mlp.bias else (False,):
            tail = "_bias" if bias else ""
            into = [self.projection(i, name, bias=bias) for i in range(e) for name in inner]
            yield self._out(disk_in + tail, memory_in + tail, (), (e, rows) if bias else (e, rows, d), "expert", *into)
            out = [self.projection(i, "down", bias=bias) for i in range(e)]
            yield self._out(
                names.down + tail, memory_down + tail, (), (e, d) if bias else (e, d, width), "expert", *out
            )

    # -- shared expert ----------------------------------------------------------------------------------------

    def shared_projection(self, name: str, *, bias: bool = False) -> Block:
        """One projection ("gate", "up", "down") of the shared expert: W neurons of the base's FFN."""
        block = self._copy(BASE, name, self._shared_neurons, bias=bias)
        return replace(block, scale=self._scales.shared) if name == "down" else block

    def _shared(self) -> Iterator[OutTensor]:
        names, width, d = self.target.names.shared, self.layout.shared_width, self.spec.hidden_size
        assert names is not None
        inner = ("gate", "up") if self.spec.mlp.gated else ("up",)
        for bias in (False, True) if self.spec.mlp.bias else (False,):
            for disk, parts in [*self._shared_inner(names, inner), (names.down, ("down",))]:
                blocks = [self.shared_projection(part, bias=bias) for part in parts]
                out = _as_bias(disk) if bias else disk
                rows = d if parts == ("down",) else len(parts) * width
                columns = width if parts == ("down",) else d
                yield self._out(out, out, (), (rows,) if bias else (rows, columns), "shared", *blocks)

    def _shared_inner(self, names: ExpertNames, inner: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        """(name on disk, projections it holds) of the shared expert's matrices before the activation."""
        if self.spec.mlp.gated and names.gate_up:
            return [(names.gate_up, inner)]
        return [(str(getattr(names, part)), (part,)) for part in inner]


def _as_run(neurons: list[int]) -> Sequence[int]:
    """As a range where they follow each other, which is copied without reordering; otherwise a tuple."""
    run = range(neurons[0], neurons[-1] + 1)
    return run if len(run) == len(neurons) else tuple(neurons)


def _as_bias(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"
