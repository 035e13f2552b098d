"""A teacher's cache: what is read is what was written, at the token that it is for; what will not do is said."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import dense_llama, tiny_tokenizer
from tests.training.runs import dense_folder, write_text

from smolmoe.data.blocks import Blocks
from smolmoe.data.corpus import load_corpus
from smolmoe.data.targets import TargetCache, digest_documents, open_cache, pack_ids, text_hash, unpack_ids
from smolmoe.data.tokens import TokenStore
from smolmoe.distillation.run import cache_teacher
from smolmoe.errors import DataError
from smolmoe.recipe import DataRecipe, parse

K = 7


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a teacher, and two caches of it, in several shards."""
    folder = tmp_path_factory.mktemp("targets")
    teacher, text = dense_folder(folder / "teacher"), write_text(folder / "text.jsonl", documents=30)
    cache_teacher(teacher, text, folder / "top", top_k=K, device="cpu", shard_tokens=500)
    cache_teacher(teacher, text, folder / "drawn", sampled=K, device="cpu", shard_tokens=500)
    return folder


def store_of(place: Path, text: str = "text.jsonl") -> TokenStore:
    values = {"sources": [{"path": str(place / text)}], "held_out": 0.2, "cache": str(place / "cache")}
    return load_corpus(parse(DataRecipe, values), tiny_tokenizer()).train


def expected(store: TokenStore, document: int) -> torch.Tensor:
    """The teacher's log-probabilities [n, V] of a document's tokens, read after the end-of-text token."""
    ids = [tiny_tokenizer().eos_token_id, *store.document(document).tolist()]
    with torch.no_grad():
        return dense_llama()(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


@pytest.mark.parametrize("vocabulary", [300, 65536, 65537, 200_000])
def test_ids_take_the_fewest_bytes_and_come_back(vocabulary: int) -> None:
    ids = np.array([[0, 1, 255], [256, vocabulary - 1, vocabulary // 2]])
    packed = pack_ids(ids, vocabulary)
    assert packed.nbytes == ids.size * (2 if vocabulary <= 65536 else 3)
    assert unpack_ids(packed).tolist() == ids.tolist()


@pytest.mark.parametrize("isolate", [False, True])
def test_a_block_holds_what_the_teacher_says_of_each_of_its_tokens(place: Path, isolate: bool) -> None:
    store, cache = store_of(place), open_cache(place / "top")
    blocks = Blocks(store, count=40, length=48, seed=3, isolate=isolate, targets=cache)
    said = [expected(store, i) for i in range(len(store))]
    order = blocks._order.documents
    stream = np.concatenate([store.document(int(d)) for d in order])
    owners = np.concatenate([np.full(store.lengths[d], d) for d in order])
    inside = np.concatenate([np.arange(store.lengths[d]) for d in order])
    for index in range(len(blocks)):
        block, begin = blocks[index], int(blocks._places[index]) * 48
        assert block["input_ids"].tolist() == stream[begin : begin + 48].tolist()
        assert block["target_ids"].shape == block["target_values"].shape == (48, K)
        for at in range(0, 48, 7):
            row = said[owners[begin + at]][inside[begin + at]]
            values, found = row.topk(K)
            assert block["target_ids"][at].tolist() == found.tolist()
            assert torch.allclose(block["target_values"][at].float(), values, atol=5e-3)
            tail = torch.log1p(-values.exp().sum())
            assert block["target_rest"][at].item() == pytest.approx(tail.item(), abs=5e-3)


def test_drawn_rows_are_shares_that_sum_to_one(place: Path) -> None:
    store, cache = store_of(place), open_cache(place / "drawn")
    documents = np.arange(len(store))
    firsts = cache.locate(store, documents)
    for document in (0, len(store) - 1):
        length = int(store.lengths[document])
        whole = cache.read([(int(firsts[document]), length)])
        assert np.allclose(whole.values.sum(-1), 1)
        p = expected(store, document).exp().numpy()
        shares = np.zeros_like(p)
        np.add.at(shares, (np.arange(length)[:, None], whole.ids), whole.values)
        assert np.abs(shares - p).max() < 1 / K + 1e-6
        entropy = -(p * np.log(p)).sum(-1)
        assert np.allclose(whole.rest, entropy, atol=5e-3)
        part = cache.read([(int(firsts[document]) + 3, 5), (int(firsts[document]) + 1, 2)])
        assert np.array_equal(part.ids, np.concatenate([whole.ids[3:8], whole.ids[1:3]]))
        assert np.array_equal(part.values, np.concatenate([whole.values[3:8], whole.values[1:3]]))


def test_a_cache_goes_to_another_process_as_its_name(place: Path) -> None:
    cache = open_cache(place / "top")
    cache.read([(0, 4)])
    sent = pickle.dumps(cache)
    assert len(sent) < 10_000
    assert np.array_equal(pickle.loads(sent).read([(0, 4)]).ids, cache.read([(0, 4)]).ids)


def test_documents_of_another_text_are_counted_and_both_texts_named(place: Path) -> None:
    write_text(place / "more.jsonl", documents=40)  # begins with the 30 that are cached
    store, cache = store_of(place, "more.jsonl"), open_cache(place / "top")
    documents = np.arange(len(store))
    here = text_hash(digest_documents(store.documents()))
    missing = len({s.tobytes() for s in digest_documents(store.documents())} - _keys(cache))
    assert 0 < missing < len(store)
    with pytest.raises(DataError, match=f"{missing} of {len(store)} training documents") as error:
        cache.locate(store, documents)
    assert cache.text in str(error.value)
    assert here in str(error.value)


def _keys(cache: TargetCache) -> set[bytes]:
    return {row.tobytes() for row in cache._index[0]}


def test_the_hash_of_a_text_is_of_its_documents_in_any_order() -> None:
    a, b = np.array([1, 2, 3], dtype="<u2"), np.array([4], dtype="<u4")
    assert text_hash(digest_documents([a, b])) == text_hash(digest_documents([b.astype("<u2"), a, a]))
    assert text_hash(digest_documents([a])) != text_hash(digest_documents([a, b]))


def test_a_folder_without_a_cache_an_unfinished_one_and_a_damaged_one_are_told_apart(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="not a teacher's cache"):
        open_cache(tmp_path)
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(DataError, match=r"is incomplete.*resume=True"):
        open_cache(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        open_cache(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone", "format"])
def test_a_cache_that_lost_a_part_is_refused(place: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(place / "top", folder)
    values = folder / "shard-00001" / "values.npy"
    if damage == "cut":
        values.write_bytes(values.read_bytes()[:-10])
    elif damage == "gone":
        shutil.rmtree(folder / "shard-00001")
    else:
        about: dict[str, Any] = json.loads((folder / "cache.json").read_text())
        (folder / "cache.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(DataError, match="damaged"):
        open_cache(folder)
