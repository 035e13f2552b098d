"""Router rows of one group's experts kept equal in training, so that whole groups are chosen (arXiv 2410.07524).

With granularity G the experts e // G = g are the shards of one FFN. Only together do they compute it, and only as long
as their router rows are equal are they chosen together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from smolmoe.errors import RequestError
from smolmoe.moe.gating import router_weight
from smolmoe.moe.routing import find_routers, selection_biases


class GroupTies:
    """Ties the router rows of every G consecutive experts of a model.

        loss.backward()
        ties.apply()
        optimizer.step()

    Rows that are equal, with equal gradients and equal optimiser state, stay equal.

    Args:
        model: any MoE whose routers have a weight [E, D].
        granularity: G.

    Raises:
        RequestError: G does not divide E.
    """

    def __init__(self, model: nn.Module, granularity: int):
        self.granularity = granularity
        self.model = model
        self.routers = [router for _, router in find_routers(model)]
        for router in self.routers:
            experts = router_weight(router).shape[0]
            if granularity < 1 or experts % granularity:
                raise RequestError(f"does not divide {experts} experts.", field="granularity", value=granularity)

    @torch.no_grad()
    def apply(self) -> None:
        """Average over each group the gradients of the router rows, and the selection bias where there is one.

        To be called once all gradients are there (accumulated, and averaged over ranks) and before the optimiser steps.
        """
        for tensor in self._tied():
            tensor.copy_(_mean_over_groups(tensor, self.granularity))

    @torch.no_grad()
    def spread(self) -> float:
        """The largest difference within a group: the largest |row - first row| / |first row|; 0 while tied."""
        largest = [torch.zeros(())]
        for router in self.routers:
            weight = _whole(router_weight(router).detach())
            rows = weight.float().unflatten(0, (-1, self.granularity))  # [E / G, G, D]
            apart = (rows - rows[:, :1]).norm(dim=-1) / rows[:, :1].norm(dim=-1).clamp_min(1e-30)
            largest.append(apart.max().cpu())
        return torch.stack(largest).max().item()

    def _tied(self) -> Iterator[torch.Tensor]:
        for router in self.routers:
            for rows in (router_weight(router), getattr(router, "noise_weight", None)):
                if rows is not None and rows.grad is not None:
                    yield rows.grad
        yield from (bias for bias in selection_biases(self.model).values() if bias is not None)


def _mean_over_groups(tensor: torch.Tensor, granularity: int) -> torch.Tensor:
    groups = _whole(tensor).unflatten(0, (-1, granularity))
    mean = groups.mean(1, keepdim=True).expand_as(groups).flatten(0, 1)
    if not isinstance(tensor, DTensor):
        return mean
    return distribute_tensor(mean, tensor.device_mesh, tensor.placements, src_data_rank=None)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A group's rows may lie on two ranks; routers are small, so every rank gathers all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
