"""Merge several experts of an MoE into one, their average, in an MoE of the same class.

Experts upcycled from one dense model keep its order of neurons, so they are averaged without alignment. The
router row of the average is the average of the rows; the softmax would need the log-sum-exp of the members' logits,
which is not a linear function of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from smolmoe.core.checkpoint import Checkpoint
from smolmoe.core.claim import Claim
from smolmoe.errors import RequestError
from smolmoe.families import MOE_TARGETS
from smolmoe.surgery.experts.moe_files import MoeFiles
from smolmoe.surgery.experts.subset import SOURCE, Computed, Program, refuse_capacity, renumbered, whole, without_groups
from smolmoe.surgery.tensors.program import Block, OutTensor, Read

if TYPE_CHECKING:
    from torch import Tensor

Groups = tuple[tuple[int, ...], ...]
Weights = Mapping[int, Sequence[float]]  # MoE layer -> weight of each of its E experts in its group's average


def check_groups(files: MoeFiles, groups: Sequence[Sequence[int]]) -> Groups:
    """The groups, with every expert in exactly one: experts that are not named form their own group.

    Raises:
        RequestError: an expert does not exist or is in two groups, or there is nothing to merge.
    """
    named = [e for group in groups for e in group]
    for e in named:
        if not 0 <= e < files.experts:
            raise RequestError(f"no such expert; there are experts 0 to {files.experts - 1}.", field="groups", value=e)
        if named.count(e) > 1:
            raise RequestError("is given twice: in two groups, or twice in one.", field="groups", value=e)
    alone = [(e,) for e in range(files.experts) if e not in named]
    whole_groups = tuple(sorted(tuple(sorted(group)) for group in [*groups, *alone] if group))
    if len(whole_groups) == files.experts:
        raise RequestError("nothing to merge: every group has one expert.", field="groups", value=str(groups))
    return whole_groups


def merge_by_use(use: Sequence[float], similarity: Tensor, count: int) -> Groups:
    """`count` groups around the experts used most; each other expert joins the one with the most similar router logits.

    The grouping of M-SMoE (arXiv 2310.01334), without its alignment of neurons.

    Args:
        use: summed gate weight of each expert.
        similarity: [E, E], similarity of the experts' logits over the same tokens.
    """
    order = sorted(range(len(use)), key=lambda e: -use[e])
    groups = {e: [e] for e in order[:count]}
    for e in order[count:]:
        groups[max(groups, key=lambda centre: float(similarity[e, centre]))].append(e)
    return tuple(sorted(tuple(sorted(group)) for group in groups.values()))


def merged(files: MoeFiles, groups: Mapping[int, Groups], weights: Weights | None = None) -> Program:
    """The program of the MoE with each group of experts merged into one.

    Args:
        files: the MoE.
        groups: MoE layer -> all its experts in groups; the same number of groups in each layer.
        weights: of the averages; equal by default. They are normalised to sum to 1 within each group.

    Raises:
        RequestError: named experts that are grouped differently in other layers, shards of split FFNs, too few
            experts for the class, or routing that is limited to groups or by capacity.
    """
    count = len(next(iter(groups.values())))
    _check(files, groups, count)
    merging = _Merging(files, groups, weights)
    tensors = tuple(tensor for name in files.checkpoint.tensors for tensor in merging.tensors(name))
    config = files.resized(count, min(files.top_k, count)) | without_groups(files)
    if files.names is not None:
        config |= {"expert_names": [_joined(files.names, group) for group in next(iter(groups.values()))]}
    return Program(config, tensors, {SOURCE: files.parts}, Computed(merging.makers))


def _check(files: MoeFiles, groups: Mapping[int, Groups], count: int) -> None:
    refuse_split(files, "merged with another")
    refuse_capacity(files)
    least = MOE_TARGETS[files.kind].min_experts if files.kind in MOE_TARGETS else 1
    if count < least:
        raise RequestError(
            f"a router of this class ({files.kind}) needs at least {least} experts.", field="experts", value=count
        )
    if files.names is not None and len(set(groups.values())) > 1:
        raise RequestError(
            "the experts have names, which apply to all layers, so all layers must have the same groups.",
            field="groups",
            value=str(dict(groups)),
        )


def refuse_split(files: MoeFiles, what: str) -> None:
    """Raises RequestError if experts are shards of a split FFN, which are only meaningful together."""
    if files.granularity > 1:
        raise RequestError(
            f"every {files.granularity} experts are the shards of one FFN, so no shard can be {what} on its own.",
            field="granularity",
            value=files.granularity,
        )


def _joined(names: Sequence[str | None], group: Sequence[int]) -> str | None:
    found = dict.fromkeys(name for e in group if (name := names[e]) is not None)
    return "+".join(found) or None


def merge_claim(files: MoeFiles, groups: Mapping[int, Groups]) -> Claim:
    """The claim for a merge, compared with its source MoE. Reads and compares the experts' weights."""
    if files.renormalises:
        if files.all_copies:
            return Claim(
                "exact",
                "All experts of a layer are the same and the gates sum to 1, so it does not matter which are chosen.",
            )
        pairs = [(layer, group) for layer, of in groups.items() for group in of]
        if files.top_k == 1 and all(files.same_ffns(*pair) and files.same_rows(*pair) for pair in pairs):
            return Claim(
                "exact",
                "Only identical experts, router rows included, are merged, and each token goes to one expert.",
            )
    return Claim(
        "none",
        "The average of different experts equals none of them, and a merged expert is chosen by the average of its "
        "members' router rows. The result is measured, not predicted.",
    )


class _Merging:
    """The tensors of a merge, and the averages they are made from, by stream."""

    def __init__(self, files: MoeFiles, groups: Mapping[int, Groups], weights: Weights | None):
        self.files = files
        self.groups = groups
        self.weights = weights
        self.makers: dict[str, Callable[[], Tensor]] = {}

    def tensors(self, name: str) -> Iterator[OutTensor]:
        """The output tensor for a tensor on disk."""
        files = self.files
        if name in files.owner:
            layer, expert = files.owner[name]
            for new, group in enumerate(self.groups[layer]):
                if group[0] == expert:
                    yield self._one(name, layer, expert, new, group)
        elif name in files.stacks:
            yield self._stack(name, files.stacks[name])
        else:
            yield whole(files, name)

    def _one(self, name: str, layer: int, expert: int, new: int, group: tuple[int, ...]) -> OutTensor:
        out = renumbered(name, expert, new)
        if len(group) == 1:
            return whole(self.files, name, out, role="expert")
        info, dtype = self.files.parts.tensors[name], self.files.parts.dtype(name)
        members = [(renumbered(name, expert, e), None) for e in group]
        block = self._average(out, info.shape, members, self._shares(layer, group))
        return OutTensor(out, out, (), info.shape, dtype, "expert", (block,))

    def _stack(self, name: str, layer: int) -> OutTensor:
        info, groups = self.files.parts.tensors[name], self.groups[layer]
        row = (1, *info.shape[1:])
        blocks = []
        for new, group in enumerate(groups):
            if len(group) == 1:
                blocks.append(Block(row, (Read(SOURCE, name),), span=(group[0], group[0] + 1)))
            else:
                members = [(name, (e, e + 1)) for e in group]
                blocks.append(self._average(f"{name}[{new}]", row, members, self._shares(layer, group)))
        found = self.files.layers[layer]
        role = "router" if name in (found.router, found.selection_bias) else "expert"
        shape = self.files.stored(name, (len(groups), *info.shape[1:]))
        return OutTensor(name, name, (), shape, self.files.parts.dtype(name), role, tuple(blocks))  # type: ignore[arg-type]

    def _shares(self, layer: int, group: Sequence[int]) -> list[float]:
        weights = [1.0 if self.weights is None else float(self.weights[layer][e]) for e in group]
        total = sum(weights)
        # Experts that no token of the data reached are weighted equally.
        return [weight / total for weight in weights] if total > 0 else [1 / len(group)] * len(group)

    def _average(
        self,
        stream: str,
        shape: tuple[int, ...],
        members: Sequence[tuple[str, tuple[int, int] | None]],
        shares: Sequence[float],
    ) -> Block:
        self.makers[stream] = partial(_weighted, self.files.parts, members, shares)
        return Block(shape, fill="rows", stream=stream)


def _weighted(
    parts: Checkpoint, members: Sequence[tuple[str, tuple[int, int] | None]], shares: Sequence[float]
) -> Tensor:
    import torch

    first = parts.read(*members[0]).float()
    # The first plus the differences of the others: the average of equal values is exactly that value.
    total = torch.zeros_like(first)
    for member, share in zip(members[1:], shares[1:], strict=True):
        total += share * (parts.read(*member).float() - first)
    return first + total
