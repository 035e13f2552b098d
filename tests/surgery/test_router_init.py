"""Routers from domains: rows point at their domain, favour no expert by the mean input, and predict their load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.surgery.test_request import plan

from smolmoe import upcycle
from smolmoe.errors import DataError, SourceError
from smolmoe.moe.loading import load_tokenizer
from smolmoe.surgery.router_init import domain_rows, kmeans, rows_from_centroids
from smolmoe.surgery.tensors.initialisers import generator


def blobs(count: int, spread: float = 0.3, offset: float = 20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [T, 8] around `count` centres, all far from the origin, and their labels."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(count, 8, generator=rng) * 2
    labels = torch.arange(count).repeat_interleave(100)
    noise = torch.randn(len(labels), 8, generator=rng) * spread
    return centres[labels] + noise + offset, labels


def test_rows_choose_their_own_domain_though_all_inputs_lie_far_out() -> None:
    x, labels = blobs(4)
    centroids = torch.stack([x[labels == i].mean(0) for i in range(4)])
    rows = rows_from_centroids(x, centroids)
    chosen = (x @ rows.T).argmax(1)
    assert (chosen == labels).float().mean() > 0.9
    naive = (x @ centroids.T).argmax(1)  # centroids as they are: the longest one takes nearly everything
    assert (naive == labels).float().mean() < 0.6
    assert (rows @ x.mean(0)).abs().max() < 1e-3
    assert abs((x @ rows.T).std() - 1) < 1e-3
    assert torch.allclose(rows.norm(dim=1), rows.norm(dim=1)[0].expand(4))


def test_kmeans_finds_blobs() -> None:
    x, labels = blobs(3)
    centroids = kmeans(x, 3, generator(1, "k"))
    nearest = torch.cdist(x, centroids).argmin(1)
    assert all(len(nearest[labels == i].unique()) == 1 for i in range(3))
    assert torch.allclose(kmeans(x, 1, generator(0, "k"))[0], x.mean(0))


def domains(path: Path, names: tuple[str, ...] = ("numbers", "words")) -> Path:
    texts = {
        "numbers": "1 + 2 = 3; 40 * 5 = 200; ",
        "words": "the sum of three and four is seven ",
        "code": "def f(x): ",
    }
    rows = [{"text": texts[name] * (4 + i % 3), "domain": name} for i in range(40) for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("options", [{"experts": 4}, {"experts": 4, "granularity": 2, "top_k": 2}, {"shared": "full"}])
def test_the_function_is_kept_and_the_load_is_stored(options: dict[str, Any], tmp_path: Path) -> None:
    data = domains(tmp_path / "d.jsonl")
    out = tmp_path / "moe"
    result = upcycle(zoo.folder("llama"), out, router="domains", router_data=data, **options)
    assert result.verification is not None
    assert result.verification.passed
    assert result.router is not None
    experts = result.plan.layout.experts
    rows = experts // options.get("granularity", 1)
    assert result.router.domains == ("numbers", "words") * (rows // 2)
    for load in result.router.load.values():
        assert len(load) == experts
        assert sum(load) == pytest.approx(1)
    stored = json.loads((out / "smolmoe.json").read_text())["router"]
    assert stored["predicted_load"]["0"] == pytest.approx(result.router.load[0])


def test_groups_share_their_row(tmp_path: Path) -> None:
    from smolmoe.core.checkpoint import open_checkpoint

    options = {"granularity": 2, "router": "domains", "router_data": domains(tmp_path / "d.jsonl"), "experts": 4}
    upcycle(zoo.folder("llama"), tmp_path / "moe", **options)
    weight = open_checkpoint(tmp_path / "moe").read("model.layers.0.block_sparse_moe.gate.weight")
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[1], weight[2])


def test_kmeans_over_everything(tmp_path: Path) -> None:
    data = domains(tmp_path / "d.jsonl", ("numbers", "words", "code"))
    options = {"router": "domains", "router_data": data, "router_centroids": "kmeans", "experts": 2}
    made = plan(**options)
    found = domain_rows(made, load_tokenizer(zoo.folder("llama")))
    assert found.domains == ("cluster 0", "cluster 1")
    again = domain_rows(made, load_tokenizer(zoo.folder("llama")))
    assert all(torch.equal(found.rows[name], again.rows[name]) for name in found.rows)


def test_data_that_names_too_few_or_too_many_domains(tmp_path: Path) -> None:
    one = domains(tmp_path / "one.jsonl", ("words",))
    with pytest.raises(DataError, match="at least two"):
        upcycle(zoo.folder("llama"), tmp_path / "moe", router="domains", router_data=one)
    three = domains(tmp_path / "three.jsonl", ("numbers", "words", "code"))
    with pytest.raises(DataError, match="only 2 groups"):
        upcycle(zoo.folder("llama"), tmp_path / "moe", router="domains", router_data=three, experts=2)
    with pytest.raises(DataError):
        upcycle(zoo.folder("llama"), tmp_path / "moe", router="domains", router_data=tmp_path / "absent.jsonl")
    assert not (tmp_path / "moe").exists()


def test_a_source_without_tokenizer_says_what_it_needs_one_for(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    zoo.build("llama").save_pretrained(bare)
    with pytest.raises(SourceError, match="tokenizer"):
        upcycle(bare, tmp_path / "moe", diversify="drop")
    upcycle(bare, tmp_path / "moe", diversify="drop", verify="none")
