"""Adam's moments carried from the dense model's training into the MoE's, by the tensor program that made the weights.

A parameter of an expert gets the gradient of the dense parameter that it was copied from, times a factor c, on the
tokens that reach the expert. c is the expert's gate; on gate and up, times the scale of the down projection that their
gradient comes through. A share rho of the tokens reaches an expert, so

    m' = rho * c * m        v' = rho * c^2 * v

with rho = K/E and the gate at the start for routed experts (1/K renormalised, c sigmoid(0) independent), rho = 1 for
shared ones. m' is exact over the sum of the experts; v'
holds where the noise of single tokens makes up the second moment. A norm shifted from 1 + w to w keeps its moments;
weight decay, which the Trainer does not apply to norms, would pull it to 0 instead of 1. Derivation and measurements:
docs/explanation/boundary.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.provenance import PROVENANCE_FILE, read_provenance
from smolmoe.errors import CheckpointError, RequestError
from smolmoe.recipe import UpcycleRecipe, parse
from smolmoe.surgery.plan import Plan, make_plan
from smolmoe.surgery.shared_neurons import from_hex
from smolmoe.surgery.sources import BASE
from smolmoe.surgery.tensors.program import Block, OutTensor, Role
from smolmoe.surgery.tensors.values import gathered

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Adam's state of one parameter: `exp_avg` (m) and `exp_avg_sq` (v) in float32, of the parameter's shape; `step`,
    the number of updates behind them.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: float


def carry_moments(plan: Plan, dense: Mapping[str, Moments], *, experts: bool = True) -> dict[str, Moments]:
    """The MoE's Adam state, by the name of its parameters in memory, on the CPU.

    Parameters that the dense model does not have start fresh: routers, their biases and the gates of shared experts;
    routed experts whose down projection starts at zero (residual); an output head that was tied and no longer is, and
    the embedding with it. Neurons re-initialised by drop get m = 0 and, at each place
    along the other axis, the mean v of all neurons.

    Args:
        plan: of the conversion.
        dense: state of every parameter of the dense model, by its name in memory.
        experts: False leaves the routed experts fresh too.

    Raises:
        RequestError: the MoE is a merge, which no dense run trained; a parameter has no state, or of a different
            shape; or parameters that are joined had different numbers of updates.
    """
    _refuse_merge(plan)
    carrier = _Carrier(plan, _InMemory.of(plan, dense, "exp_avg"), _InMemory.of(plan, dense, "exp_avg_sq"))
    return {
        memory: Moments(*carrier.assembled(parts), step=_step(plan, dense, memory, parts))
        for memory, parts in _copied_parameters(plan)
        if experts or parts[0].role != "expert"
    }


def learning_rate_scales(plan: Plan) -> dict[str, float]:
    """Factor on the learning rate of every parameter that was scaled, by its name in memory.

    Adam moves an entry by about the learning rate whatever its gradient, so a matrix that was scaled by s moves the
    function by 1/s of what it did. With this factor it moves as before; decoupled weight decay is to be divided by it.
    """
    return {tensor.memory: tensor.blocks[0].scale for tensor in plan.tensors if tensor.blocks[0].scale != 1.0}


def plan_of(moe_folder: Path) -> Plan:
    """The plan that a folder was made with, from its smolmoe.json and the sources named in it.

    Raises:
        CheckpointError: not a folder that `upcycle` wrote, or a source that has changed since.
        SourceError: a source no longer exists.
    """
    provenance = _read_provenance(moe_folder)
    recipe = parse(UpcycleRecipe, _asked(provenance["request"]) | {"out": moe_folder})
    checkpoints = {}
    for name, recorded in provenance["sources"].items():
        checkpoint = open_checkpoint(recorded["name"], revision=recorded.get("revision"), field=name)
        if fingerprint(checkpoint) != recorded["sha256"]:
            raise CheckpointError(
                "has changed since the MoE was made from it.",
                field=name,
                value=str(checkpoint.folder),
                fix="Restore the original files, or upcycle again.",
            )
        checkpoints[name] = checkpoint
    neurons = (provenance.get("layout") or {}).get("shared_neurons") or {}
    if recipe.shared_by != "first" and not neurons:
        raise CheckpointError(
            f"the {PROVENANCE_FILE} lacks the shared neurons, which were chosen on text.",
            field="model",
            value=str(moe_folder),
            fix="Upcycle again.",
        )
    return make_plan(recipe, checkpoints.pop(BASE), checkpoints, shared_neurons=from_hex(neurons))


def _read_provenance(folder: Path) -> dict[str, Any]:
    provenance = read_provenance(folder)
    sources = provenance.get("sources") or {}
    known = all(source and source.get("name") and source.get("sha256") for source in sources.values())
    if provenance.get("stage") == "upcycle" and BASE in sources and known and provenance.get("request"):
        return provenance
    raise CheckpointError(
        f"no {PROVENANCE_FILE} from upcycling in this folder, so the origin of its tensors is unknown.",
        field="model",
        value=str(folder),
        fix="Use a folder written by `smolmoe upcycle`.",
    )


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """Without the defaults, which the file includes: an explicit option must have an effect."""
    fields = UpcycleRecipe.model_fields
    return {
        key: value
        for key, value in request.items()
        if key not in fields or value != fields[key].get_default(call_default_factory=True)
    }


# -- which parameters are copied, and how they are scaled -----------------------------------------------------


def _refuse_merge(plan: Plan) -> None:
    if any(read.source != BASE for tensor in plan.tensors for block in tensor.blocks for read in block.reads):
        raise RequestError(
            "no dense run trained several models at once, so there are no moments to carry.",
            field="expert",
            value=list(plan.recipe.expert),
            fix="Start the optimiser fresh, with a warm-up.",
        )


def _copied_parameters(plan: Plan) -> Iterator[tuple[str, list[OutTensor]]]:
    """(name in memory, the tensors that form it) of parameters whose values are all copied.

    Without routed experts behind a zero down projection: no gradient of the dense model resembles theirs.
    """
    parameters: dict[str, list[OutTensor]] = {}
    for tensor in plan.tensors:
        parameters.setdefault(tensor.memory, []).append(tensor)
    idle = _down_scale(plan, "expert") == 0.0
    doubled = _doubled(plan)
    for memory, parts in parameters.items():
        copied = all(block.reads for tensor in parts for block in tensor.blocks)
        if copied and memory not in doubled and not (idle and parts[0].role == "expert"):
            yield memory, parts


def _doubled(plan: Plan) -> set[str]:
    """Parameters outside the FFNs that share a dense parameter: its gradient was the sum of theirs."""
    owners: dict[tuple[str, tuple[int, int] | None], list[str]] = {}
    for tensor in plan.tensors:
        if tensor.role == "kept":
            for block in tensor.blocks:
                for read in block.reads:
                    owners.setdefault((read.tensor, block.span), []).append(tensor.memory)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _down_names(plan: Plan, *kinds: str) -> set[str]:
    """Names on disk of the dense down projections ("weight") and their biases ("bias") that become experts'."""
    base = plan.sources[BASE]
    names = (base.slot_name(i, plan.spec.mlp.down, kind) for i in plan.layout.moe_layers for kind in kinds)
    return {base.tensors[name].disk_name for name in names if name in base.tensors}


def _down_scale(plan: Plan, role: Role) -> float:
    """Factor on the down projections of this role, in every layer; 0 if they are missing or zero."""
    downs = _down_names(plan, "weight")
    blocks = (block for tensor in plan.tensors if tensor.role == role for block in tensor.blocks)
    return next((block.scale for block in blocks if any(read.tensor in downs for read in block.reads)), 0.0)


# -- the carrying ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _InMemory:
    """One moment of every dense parameter, read like a checkpoint: by name on disk."""

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, plan: Plan, dense: Mapping[str, Moments], moment: Literal["exp_avg", "exp_avg_sq"]) -> _InMemory:
        tensors: dict[str, Tensor] = {}
        for name, info in plan.sources[BASE].tensors.items():
            value = getattr(_state_of(dense, name), moment)
            if tuple(value.shape) != info.shape:
                raise RequestError(
                    f"{moment} has shape {tuple(value.shape)}, but the parameter has shape {info.shape}.",
                    field="moments",
                    value=name,
                    fix="Use the state of the run that produced this source.",
                )
            tensors[info.disk_name] = value.detach().cpu()
        return cls(tensors)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        return self.tensors[name] if rows is None else self.tensors[name][rows[0] : rows[1]]


def _state_of(dense: Mapping[str, Moments], name: str) -> Moments:
    if name not in dense:
        raise RequestError(
            "the optimiser has no state for this parameter of the source.",
            field="moments",
            value=name,
            fix="Use the state of an Adam or AdamW run that trained every parameter, with the model class's names.",
        )
    return dense[name]


@dataclass(frozen=True)
class _Carrier:
    """Both moments of the dense model, carried through a plan."""

    plan: Plan
    m: _InMemory
    v: _InMemory

    def assembled(self, parts: list[OutTensor]) -> tuple[Tensor, Tensor]:
        """Both moments of the parameter whose regions these tensors fill."""
        import torch

        shape = _shape_in_memory(parts)
        m, v = torch.empty(shape), torch.empty(shape)
        for tensor in parts:
            index = tuple(slice(*part) if isinstance(part, tuple) else part for part in tensor.region)
            m[index], v[index] = self._of_tensor(tensor)
        return m, v

    def _of_tensor(self, tensor: OutTensor) -> tuple[Tensor, Tensor]:
        import torch

        pairs = [self._of_block(block, tensor.role) for block in tensor.blocks]
        m, v = (torch.cat([values.reshape(-1) for values in moment]) for moment in zip(*pairs, strict=True))
        return m.reshape(tensor.shape), v.reshape(tensor.shape)

    def _of_block(self, block: Block, role: Role) -> tuple[Tensor, Tensor]:
        m, v = gathered(block, {BASE: self.m}), gathered(block, {BASE: self.v})
        axis = block.perturb.axis if block.perturb else 0
        fresh = block.perturb.fresh(block.shape[axis], self.plan.recipe.seed) if block.perturb else None
        if fresh is not None:
            m = m.index_fill(axis, fresh, 0.0)
            # A re-initialised neuron keeps its inputs and outputs but loses what distinguished it from other neurons.
            v = v.index_copy(axis, fresh, v.mean(axis, keepdim=True).expand_as(v).index_select(axis, fresh))
        share, factor = self._share_and_factor(block, role)
        return m * (share * factor), v * (share * factor**2)

    def _share_and_factor(self, block: Block, role: Role) -> tuple[float, float]:
        """rho, the share of tokens that reach a block, and c, the factor on their gradients there."""
        if role not in ("expert", "shared"):
            return 1.0, 1 / block.scale  # the same step of the function takes a step scaled with the weights
        layout, target = self.plan.layout, self.plan.target
        share, gate = (layout.top_k / layout.experts, layout.gate) if role == "expert" else (1.0, 1.0)
        if role == "shared" and target.shared_gated:
            gate = 0.5  # sigmoid of a zero gate
        return share, gate if block.reads[0].tensor in self._downs else gate * self._down_scales[role]

    @cached_property
    def _downs(self) -> set[str]:
        return _down_names(self.plan, "weight", "bias")

    @cached_property
    def _down_scales(self) -> dict[Role, float]:
        return {"expert": _down_scale(self.plan, "expert"), "shared": _down_scale(self.plan, "shared")}


def _shape_in_memory(parts: list[OutTensor]) -> tuple[int, ...]:
    """Shape of the parameter that these tensors fill: the extent of their regions, then their trailing axes."""
    axes = zip(*(tensor.region for tensor in parts), strict=True)
    reach = [max(part[1] if isinstance(part, tuple) else part + 1 for part in axis) for axis in axes]
    ranges = sum(isinstance(part, tuple) for part in parts[0].region)
    return (*reach, *parts[0].shape[ranges:])


def _step(plan: Plan, dense: Mapping[str, Moments], memory: str, parts: list[OutTensor]) -> float:
    """Number of updates of a parameter: that of the dense parameters it is made from."""
    names = {info.disk_name: name for name, info in plan.sources[BASE].tensors.items()}
    reads = {read.tensor for tensor in parts for block in tensor.blocks for read in block.reads}
    steps = {float(dense[names[read]].step) for read in reads}
    if len(steps) > 1:
        raise RequestError(
            f"it is made from parameters with different step counts ({sorted(steps)}), but has only one step.",
            field="moments",
            value=memory,
            fix="Train them together, or leave the experts fresh.",
        )
    return steps.pop()
