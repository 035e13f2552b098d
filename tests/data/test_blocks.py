"""Blocks: a stream that does not depend on how far it is read, shares by weight, no attention across documents."""

from __future__ import annotations

import itertools
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import dense_gpt2, dense_llama, random_moe
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.moe.dense import FAMILIES, build_dense, upcycle
from torch.utils.data import DataLoader

from smolmoe.data.blocks import WINDOW, Blocks
from smolmoe.data.order import order_documents, shuffle_blocks
from smolmoe.data.tokens import TokenStore
from smolmoe.errors import DataError

END = 0


def store_of(lengths, sources=None, streamed=(False,)):
    """Documents of the given lengths; the tokens count up through the store, so that each says where it is from."""
    sources = sources if sources is not None else [0] * len(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(starts[-1], dtype=np.uint32)
    domains = np.arange(len(lengths), dtype=np.int16) % 5
    return TokenStore(ids, starts, domains, np.array(sources, dtype=np.int16), streamed)


stores = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=30).filter(
    lambda documents: sum(length for length, _ in documents) >= 8
)


@settings(deadline=None, max_examples=80)
@given(stores, st.integers(-3, 99), st.integers(1, 40), st.integers(1, 60), st.integers(2, 8), st.data())
def test_more_blocks_begin_with_the_same_ones(documents, seed, few, more, length, data):
    lengths, sources = zip(*documents, strict=True)
    full = [sum(n for n, source in documents if source == wanted) > 0 for wanted in range(3)]
    weights = data.draw(st.none() | st.tuples(*[st.floats(0.01, 100)] * 3)) if all(full) else None
    streamed = tuple(data.draw(st.tuples(*[st.booleans()] * 3))) if all(full) else (False,) * 3
    store = store_of(lengths, sources, streamed)
    short = Blocks(store, count=few, length=length, seed=seed, weights=weights)
    long = Blocks(store, count=few + more, length=length, seed=seed, weights=weights)
    for index in range(few):
        for name, values in short[index].items():
            assert values.shape == (length,)
            assert values.dtype == torch.int64
            assert torch.equal(values, long[index][name])


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 9))
def test_blocks_are_shuffled_within_their_window(windows, window, seed):
    places = shuffle_blocks(windows * window, window, seed)
    for number in range(windows):
        inside = places[number * window : (number + 1) * window]
        assert sorted(inside) == list(range(number * window, (number + 1) * window))
    fewer = shuffle_blocks(windows * window // 2 + 1, window, seed)
    assert np.array_equal(fewer, places[: len(fewer)])


def test_a_batch_is_of_many_documents():
    """Two long documents: neighbouring blocks of the stream are of one, neighbouring blocks of the order of both."""
    store = store_of([4096, 4096])
    blocks = Blocks(store, count=128, length=64, seed=0)
    first = [int(block["input_ids"][0] < 4096) for block in blocks]
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert changes > 40


@settings(deadline=None, max_examples=50)
@given(stores, st.integers(0, 9), st.integers(2, 50))
def test_blocks_are_the_documents_in_their_order(documents, seed, length):
    store = store_of([n for n, _ in documents])
    if store.tokens < length:
        return
    window = min(WINDOW, store.tokens // length)
    count = 3 * window
    blocks = Blocks(store, count=count, length=length, seed=seed, isolate=True)
    places = shuffle_blocks(count, window, seed)
    in_order = [blocks[int(index)] for index in np.argsort(places)]
    joined = {name: torch.cat([block[name] for block in in_order]).tolist() for name in blocks[0]}
    order = order_documents(store, count * length, seed=seed, weights=None).documents
    wanted = [(document, token) for document in order for token in store.document(document).tolist()]
    wanted = wanted[: count * length]
    assert joined["input_ids"] == [token for _, token in wanted]
    assert joined["domain_ids"] == [store.domain_ids[document] for document, _ in wanted]
    assert joined["labels"] == joined["input_ids"]
    ends = {int(store.starts[document + 1]) - 1 for document in order}
    position = -1
    for place, (_, token) in enumerate(wanted):
        # A document's end-of-text begins the next one, if there is any of it in the block.
        is_start = token in ends and (place + 1) % length and place + 1 < len(wanted)
        position = 0 if place % length == 0 or is_start else position + 1
        assert joined["position_ids"][place] == position
    plain = Blocks(store, count=count, length=length, seed=seed)
    assert all(torch.equal(block["labels"], block["input_ids"]) and "position_ids" not in block for block in plain)


def epochs(store, count, **options):
    order = order_documents(store, count * store.tokens, **{"seed": 0, "weights": None, **options}).documents
    return order.reshape(count, -1)


def test_every_epoch_holds_every_document_once_in_another_order():
    for size in (3, 50, 70_000):
        rounds = epochs(store_of([1 + n % 3 for n in range(size)]), 3)
        for chosen in rounds:
            assert np.array_equal(np.sort(chosen), np.arange(size))
        if size > 3:
            assert all(not np.array_equal(a, b) for a, b in pairwise(rounds))
    store = store_of([2] * 50)
    assert not np.array_equal(epochs(store, 1, seed=1), epochs(store, 1, seed=2))


def test_the_order_is_this_one_for_good():
    """A run is resumed with the order it began with, whatever versions it meets later."""
    assert epochs(store_of([2] * 8), 2, seed=7).tolist() == [[6, 3, 4, 0, 2, 7, 5, 1], [4, 3, 2, 5, 1, 6, 7, 0]]


def test_shares_follow_the_weights_at_every_moment():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 3000)
    sources = np.repeat([0, 1, 2], [2000, 900, 100])
    store = store_of(lengths, sources, (False,) * 3)
    weights = np.array([1.0, 2.0, 5.0])
    order = order_documents(store, 2_000_000, seed=0, weights=weights.tolist())
    tokens = lengths[order.documents]
    read = np.stack([np.cumsum(np.where(sources[order.documents] == source, tokens, 0)) for source in range(3)])
    shares = weights / weights.sum()
    ahead = read - shares[:, None] * order.ends
    assert ahead.max() <= lengths.max()
    assert (ahead >= -shares[:, None] * 3 * lengths.max()).all()
    assert np.abs(read[:, -1] / order.ends[-1] - shares).max() < 0.01
    blocks = Blocks(store, count=4000, length=64, seed=0, weights=weights.tolist())
    ids = torch.cat([block["input_ids"] for block in blocks]).numpy()
    by_source = np.bincount(sources[np.searchsorted(store.starts, ids, side="right") - 1]) / len(ids)
    assert np.abs(by_source - shares).max() < 0.01
    small = order.documents[sources[order.documents] == 2]
    for epoch in range(20):  # each source goes through its own epochs
        assert np.array_equal(np.sort(small[100 * epoch : 100 * (epoch + 1)]), np.arange(2900, 3000))


def test_streams_keep_their_order_and_share_evenly():
    store = store_of([10] * 60, [0, 1] * 30, (True, False))
    order = order_documents(store, 900, seed=0, weights=None).documents
    assert order[order % 2 == 0].tolist() == [*range(0, 60, 2), *range(0, 30, 2)]
    assert order[order % 2 == 1].tolist() != sorted(order[order % 2 == 1])
    assert (order % 2).reshape(-1, 2).sum(axis=1).tolist() == [1] * 45


def test_a_large_order_is_made_in_seconds():
    lengths = np.full(500_000, 200)
    store = store_of(lengths, np.arange(500_000) % 2, (False, False))
    for weights in (None, (1.0, 3.0)):
        start = time.process_time()
        order_documents(store, int(lengths.sum()), seed=0, weights=weights)
        assert time.process_time() - start < 3  # 0.15 s when nothing else runs


def test_what_cannot_be_cut_into_blocks():
    with pytest.raises(DataError, match="7 tokens do not fill a block of 8") as caught:
        Blocks(store_of([3, 4]), count=1, length=8, seed=0)
    assert "shorter blocks" in str(caught.value.fix)
    store = store_of([9, 9], [0, 0], (False, False))
    with pytest.raises(DataError, match=r"data\.sources\[1\].*this source has no text"):
        Blocks(store, count=1, length=8, seed=0, weights=(1, 1))
    for weights in ((1,), (1, 0)):
        with pytest.raises(DataError, match="positive, one per source"):
            Blocks(store, count=1, length=8, seed=0, weights=weights)
    with pytest.raises(IndexError):
        Blocks(store, count=2, length=8, seed=0)[2]


def generic_moe(name):
    return upcycle(build_dense(FAMILIES[name]), FAMILIES[name])


MODELS = {
    "llama": dense_llama,
    "gpt2": dense_gpt2,
    "mixtral": lambda: random_moe("mixtral"),
    "olmoe": lambda: random_moe("olmoe"),
    "generic-llama": lambda: generic_moe("llama"),
    "generic-gpt2": lambda: generic_moe("gpt2"),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_isolated_documents_are_computed_as_if_alone(name, attention):
    model = MODELS[name]()
    model.set_attn_implementation(attention)
    store = store_of([7, 1, 12, 30, 2, 5])  # the longest goes across blocks
    blocks = Blocks(store, count=4, length=19, seed=1, isolate=True)
    batch = next(iter(DataLoader(blocks, batch_size=4)))
    domains = batch.pop("domain_ids")
    assert domains.shape == (4, 19)
    with torch.no_grad():
        out = model(**batch, use_cache=False)
        losses, across = [], 0
        for ids, positions, logits in zip(batch["input_ids"], batch["position_ids"], out.logits, strict=True):
            begins = [*torch.nonzero(positions == 0).flatten().tolist(), 19]
            across += len(begins) > 2
            for begin, end in pairwise(begins):
                alone = model(ids[None, begin:end], use_cache=False).logits[0]
                assert torch.allclose(logits[begin:end], alone, atol=1e-5), (name, attention, begin)
                targets = ids[begin + 1 : end + 1]  # the end-of-text that follows among them
                losses.append(torch.nn.functional.cross_entropy(alone[: len(targets)], targets, reduction="sum"))
        assert across >= 3
        assert torch.allclose(out.loss, sum(losses) / (4 * 18), atol=1e-5)
        joined = model(batch["input_ids"], use_cache=False).logits
        assert not torch.allclose(joined, out.logits, atol=1e-2)
