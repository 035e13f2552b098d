"""Two processes: the load of all ranks is counted; sharded routers (FSDP2) are controlled and tied as whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import dense_llama, moe_of

RANKS, G = 2, 4
IDS = torch.arange(10, 74).view(2, 32)


def build() -> Any:
    return moe_of(dense_llama(), experts=12, top_k=8, granularity=G).train()


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, store=store)
    try:
        torch.save({"load": counted(rank), "sharded": sharded()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def counted(rank: int) -> list[Any]:
    from smolmoe.moe.losses import LoadCounter

    counter = LoadCounter(1, 2)
    first = counter.add(torch.tensor([[[1, 3]], [[4, 0]]][rank]), tokens=[3, 1][rank])
    share = counter.rank_share.item()
    return [first.tolist(), share, counter.add(torch.tensor([[0, 4]])).tolist()]


def sharded() -> dict[str, Any]:
    """Twelve rows on two ranks: the middle group lies on both."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from smolmoe.moe.control import control_routers
    from smolmoe.moe.gating import Intervention
    from smolmoe.moe.routing import find_routers
    from smolmoe.moe.ties import GroupTies

    model = build()
    control = control_routers(model, Intervention(temperature=2.0))
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ties = GroupTies(model, G)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    ties.apply()
    weight = find_routers(model)[0][1].weight
    assert tuple(weight.to_local().shape) == (6, 32)
    gradient = weight.grad.full_tensor()
    with control.folded():
        folded = weight.full_tensor().clone()
    return {"loss": loss.item(), "gradient": gradient, "spread": ties.spread(), "folded": folded}


@pytest.mark.slow
def test_ranks_count_together_and_shards_are_tied(tmp_path: Path) -> None:
    from smolmoe.moe.control import control_routers
    from smolmoe.moe.gating import Intervention
    from smolmoe.moe.routing import find_routers
    from smolmoe.moe.ties import GroupTies

    mp.spawn(work, args=(str(tmp_path),), nprocs=RANKS)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for rank, result in enumerate(results):
        assert result["load"] == [[[5 / 8, 3 / 8]], [1.5, 0.5][rank], [[5 / 16, 11 / 16]]]

    whole = build()
    control_routers(whole, Intervention(temperature=2.0))
    loss = whole(IDS, labels=IDS).loss
    loss.backward()
    GroupTies(whole, G).apply()
    weight = find_routers(whole)[0][1].weight
    for result in results:
        assert result["sharded"]["spread"] == 0
        torch.testing.assert_close(result["sharded"]["loss"], loss.item())
        torch.testing.assert_close(result["sharded"]["gradient"], weight.grad)
        assert torch.equal(result["sharded"]["folded"], weight.detach() / 2)
