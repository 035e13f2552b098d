"""The corpus of a recipe: what is on which side, tokenised once, and what makes it another corpus."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import textwrap
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers import tiny_tokenizer
from tests.core.test_files import another_process
from tests.processes import Child

from smolmoe.data import corpus as corpus_module
from smolmoe.data.blocks import WINDOW, Blocks, whole_windows
from smolmoe.data.corpus import load_corpus
from smolmoe.data.embedded import is_held_out
from smolmoe.data.presets import PRESETS, Preset, documents_of
from smolmoe.errors import DataError, OutputError
from smolmoe.recipe.data import DataRecipe


class Refusing:
    """A tokenizer that answers what the cache asks of it, and cuts no text."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    @property
    def unchecked(self):
        """What it makes of texts of its own is asked here, to tell it from others."""
        return self._tokenizer

    def __call__(self, *args, **kwargs):
        raise AssertionError("tokenised again")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(count, what="number", **columns):
    return [{"text": f"{what} {n} " * (1 + n % 7), **columns} for n in range(count)]


def recipe_of(*paths, **values):
    return DataRecipe(sources=[{"path": path} for path in paths], **{"held_out": 0.2, **values})


def texts(store, tokenizer):
    return [tokenizer.decode(ids[:-1]) for ids in store.documents()]


def test_every_document_is_on_the_side_that_its_text_says(tmp_path, tokenizer):
    rows = numbered(2000, domain="a") + numbered(50, "other") + [{"text": " "}, {"text": None}]
    recipe = recipe_of(jsonl(tmp_path / "a.jsonl", rows))
    corpus = load_corpus(recipe, tokenizer)
    train, validation = texts(corpus.train, tokenizer), texts(corpus.validation, tokenizer)
    assert not set(train) & set(validation)
    wanted = [row["text"] for row in rows[:-2]]
    assert train == [text for text in wanted if not is_held_out(text, 0.2)]
    assert validation == [text for text in wanted if is_held_out(text, 0.2)]
    assert 350 < len(validation) < 470
    assert corpus.domains == ("a", "text")
    for store in (corpus.train, corpus.validation):
        assert store.ids.dtype == np.uint16
        assert isinstance(store.ids, np.memmap)
        assert all(ids[-1] == tokenizer.eos_token_id for ids in store.documents())
        names = [corpus.domains[number] for number in store.domain_ids]
        assert names == ["text" if text.startswith("other") else "a" for text in texts(store, tokenizer)]
    summary = corpus.summary()
    assert summary["train"]["documents"] == len(train)
    assert summary["train"]["tokens"] == len(corpus.train.ids)
    assert sum(part["tokens"] for part in summary["train"]["domains"].values()) == summary["train"]["tokens"]
    assert sum(part["documents"] for part in summary["validation"]["domains"].values()) == len(validation)


def test_duplicates_are_removed_across_sources(tmp_path, tokenizer):
    one, two = jsonl(tmp_path / "a.jsonl", numbered(300)), jsonl(tmp_path / "b.jsonl", numbered(400))
    corpus = load_corpus(recipe_of(one, two), tokenizer)
    everything = texts(corpus.train, tokenizer) + texts(corpus.validation, tokenizer)
    assert len(everything) == len(set(everything)) == 400
    assert corpus.dropped == {"duplicates": 300, "held out": 0}
    assert set(corpus.train.source_ids[:200]) == {0}
    assert np.bincount(corpus.train.source_ids)[1] < 100


def test_validation_of_its_own_is_never_trained_on(tmp_path, tokenizer):
    train, held = jsonl(tmp_path / "a.jsonl", numbered(300)), jsonl(tmp_path / "b.jsonl", numbered(320)[280:])
    corpus = load_corpus(recipe_of(train, validation=[{"path": held}]), tokenizer)
    assert texts(corpus.validation, tokenizer) == [row["text"] for row in numbered(320)[280:]]
    assert texts(corpus.train, tokenizer) == [row["text"] for row in numbered(280)]
    assert corpus.dropped == {"duplicates": 0, "held out": 20}
    with pytest.raises(DataError, match="all 300 documents are held out"):
        load_corpus(recipe_of(train, validation=[{"path": train}]), tokenizer)


def test_tokenised_once(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", numbered(300))
    recipe = recipe_of(path)
    told = []
    first = load_corpus(recipe, tokenizer, report=lambda *values: told.append(values))
    assert told[-1] == (f"Reading {path}", 300, 0)
    for same in (recipe, recipe_of(path, length=64, seed=3, isolate=True)):
        again = load_corpus(same, Refusing(tokenizer))
        assert again.fingerprint == first.fingerprint
        assert (again.domains, again.dropped) == (first.domains, first.dropped)
        for side in ("train", "validation"):
            for part in ("ids", "starts", "domain_ids", "source_ids"):
                assert np.array_equal(getattr(getattr(again, side), part), getattr(getattr(first, side), part))
    tokenizer(["changes its state"], truncation=True, max_length=2, padding="max_length")
    assert load_corpus(recipe, Refusing(tokenizer)).fingerprint == first.fingerprint


def test_what_changes_the_tokens_or_the_split_changes_the_fingerprint(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", numbered(300))
    first = load_corpus(recipe_of(path), tokenizer)
    other = tiny_tokenizer()
    other.add_tokens(["number"])
    options = [recipe_of(path, held_out=0.3), DataRecipe(sources=[{"path": path, "rows": 200}], held_out=0.2)]
    prints = [load_corpus(option, tokenizer).fingerprint for option in options]
    prints.append(load_corpus(recipe_of(path), other).fingerprint)
    jsonl(tmp_path / "a.jsonl", numbered(301))
    prints.append(load_corpus(recipe_of(path), tokenizer).fingerprint)
    assert len({first.fingerprint, *prints}) == 5


def test_large_vocabularies_take_more_bytes(tmp_path, tokenizer):
    tokenizer.add_tokens([f"<{n}>" for n in range(2**16)])
    recipe = recipe_of(jsonl(tmp_path / "a.jsonl", [*numbered(50), {"text": f"<{2**16 - 1}>"}]))
    corpus = load_corpus(recipe, tokenizer)
    assert corpus.train.ids.dtype == corpus.validation.ids.dtype == np.uint32
    assert max(corpus.train.ids.max(), corpus.validation.ids.max()) == len(tokenizer) - 1


def cached(tmp_path):
    return list((tmp_path / "cache/tokens").iterdir())


def test_only_abandoned_folders_are_cleared(tmp_path, tokenizer):
    """A run may take longer than a week: it holds the lock of its folder."""
    recipe = recipe_of(jsonl(tmp_path / "a.jsonl", numbered(300)))
    load_corpus(recipe, tokenizer)
    [folder] = cached(tmp_path)
    shutil.rmtree(folder)
    left = [folder.with_name(f".{folder.name}.{name}") for name in ("killed", "running", "new")]
    for path in left:
        path.mkdir()
    for path in left[:2]:
        os.utime(path, (0, 0))
    with another_process(left[1]):
        load_corpus(recipe, tokenizer)
    assert sorted(cached(tmp_path)) == sorted([folder, *left[1:]])


def test_a_killed_run_leaves_nothing_that_is_read(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", numbered(1200))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = f"""
        import os, signal
        from transformers import AutoTokenizer
        from smolmoe.data.corpus import load_corpus
        from smolmoe.recipe.data import DataRecipe
        recipe = DataRecipe(sources=[{{"path": {path!r}}}], held_out=0.2)
        kill = lambda *told: os.kill(os.getpid(), signal.SIGKILL)
        load_corpus(recipe, AutoTokenizer.from_pretrained({str(tmp_path / "tokenizer")!r}), report=kill)
    """
    with Child(textwrap.dedent(code)) as child:
        assert child.wait() == -9, child.stderr
    assert [folder.name[0] for folder in cached(tmp_path)] == ["."]
    corpus = load_corpus(recipe_of(path), tokenizer)
    assert len(corpus.train) + len(corpus.validation) == 1200
    assert len([folder for folder in cached(tmp_path) if folder.name[0] != "."]) == 1


def test_an_error_on_the_way_leaves_nothing(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' * 3 + "broken\n")
    with pytest.raises(DataError, match="line 4: not JSON"):
        load_corpus(recipe_of(str(tmp_path / "a.jsonl")), tokenizer)
    assert cached(tmp_path) == []


@pytest.mark.parametrize("damage", ["train.ids", "validation.index.npz", "corpus.json"])
def test_a_damaged_cache_is_made_anew(tmp_path, tokenizer, caplog, damage):
    recipe = recipe_of(jsonl(tmp_path / "a.jsonl", numbered(300)))
    before = texts(load_corpus(recipe, tokenizer).train, tokenizer)
    (folder,) = cached(tmp_path)
    (folder / damage).write_bytes((folder / damage).read_bytes()[:-6])
    assert texts(load_corpus(recipe, tokenizer).train, tokenizer) == before
    assert "is damaged" in caplog.text


def test_a_cache_that_cannot_be_written(tmp_path, tokenizer, monkeypatch):
    recipe = recipe_of(jsonl(tmp_path / "a.jsonl", numbered(300)), cache=tmp_path / "a.jsonl")
    with pytest.raises(OutputError, match=r"tokenised text cannot be stored .*data\.cache"):
        load_corpus(recipe, tokenizer)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus_module.StoreWriter, "add", full)
    with pytest.raises(OutputError, match=r"No space left on device.*Free some space"):
        load_corpus(recipe_of(jsonl(tmp_path / "a.jsonl", numbered(300))), tokenizer)
    assert cached(tmp_path) == []


def test_sides_without_documents(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", numbered(3))
    empty = jsonl(tmp_path / "b.jsonl", [{"text": ""}])
    shares = [next(s for s in np.linspace(0, 1, 10001) if is_held_out(row["text"], s)) for row in numbered(3)]
    with pytest.raises(DataError, match="none of the 3 documents is held out") as caught:
        load_corpus(recipe_of(path, held_out=min(shares) - 1e-3), tokenizer)
    assert caught.value.field == "data.held_out"
    with pytest.raises(DataError, match="all 3 documents are held out: none remains for training"):
        load_corpus(recipe_of(path, held_out=max(shares)), tokenizer)
    with pytest.raises(DataError, match="the sources contain no text"):
        load_corpus(recipe_of(empty), tokenizer)
    with pytest.raises(DataError, match="its sources contain no text"):
        load_corpus(recipe_of(path, validation=[{"path": empty}]), tokenizer)


def test_a_tokenizer_without_end_of_text(tmp_path, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        load_corpus(recipe_of(jsonl(tmp_path / "a.jsonl", numbered(3))), tokenizer)


def test_half_a_surrogate_pair_is_no_reason_to_stop(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d pair"}\n' + json.dumps({"text": "whole"}) + "\n")
    held = jsonl(tmp_path / "b.jsonl", numbered(3))
    corpus = load_corpus(recipe_of(str(tmp_path / "a.jsonl"), validation=[{"path": held}]), tokenizer)
    assert texts(corpus.train, tokenizer) == ["half ? pair", "whole"]


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """A preset whose data set is a local folder, in six files, so that it can be streamed without a hub."""
    for part in range(6):
        jsonl(tmp_path / f"set/train-{part}.jsonl", numbered(1000, f"part {part}, line"))
    read = lambda rows: documents_of("tinystories", rows)  # noqa: E731
    preset = Preset(path=str(tmp_path / "set"), columns=("text",), documents=read, licence="mit", size=6000)
    monkeypatch.setitem(PRESETS, "streamed", preset)
    return {"preset": "streamed", "streaming": True}


def test_a_stream_is_read_as_far_as_the_run_needs(stream, tokenizer):
    recipe = DataRecipe(sources=[stream], held_out=0.1)
    window = 16 * WINDOW
    short = load_corpus(recipe, tokenizer, tokens=2 * window)
    assert 2 * window <= short.train.tokens < 4 * window
    whole = load_corpus(recipe, tokenizer)
    assert len(whole.train) + len(whole.validation) == 6000
    longer = load_corpus(recipe, tokenizer, tokens=5 * window)
    assert short.fingerprint == longer.fingerprint == whole.fingerprint
    assert short.train.tokens < longer.train.tokens < whole.train.tokens
    for count, corpus in ((WINDOW + 5, short), (5 * WINDOW, longer)):
        assert whole_windows(count) * 16 <= corpus.train.tokens
        some, all_ = (Blocks(c.train, count=count, length=16, seed=1) for c in (corpus, whole))
        assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(some, all_, strict=True))
    assert np.array_equal(short.train.ids, whole.train.ids[: short.train.tokens])  # in its own order


def test_weighted_streams_are_read_by_their_share(tmp_path, stream, tokenizer):
    local = jsonl(tmp_path / "local.jsonl", numbered(500, "local"))
    recipe = DataRecipe(sources=[{"path": local, "weight": 3}, {**stream, "weight": 1}], held_out=0.1)
    tokens = 80_000
    corpus = load_corpus(recipe, tokenizer, tokens=tokens)
    read = [int(corpus.train.lengths[corpus.train.source_ids == source].sum()) for source in (0, 1)]
    assert 20_000 <= read[1] < 60_000
    blocks = Blocks(corpus.train, count=WINDOW, length=64, seed=0, weights=(3, 1))
    streamed = [n for n in blocks._order.documents if corpus.train.source_ids[n] == 1]
    assert streamed == sorted(set(streamed))  # never from its start again
    with pytest.raises(DataError, match=r"is unlimited.*`rows`"):
        load_corpus(DataRecipe(sources=[{"path": local}], validation=[stream]), tokenizer)
    held = load_corpus(DataRecipe(sources=[{"path": local}], validation=[{**stream, "rows": 30}]), tokenizer)
    assert len(held.validation) == 30


def test_the_embedded_corpus_and_its_domains(tokenizer):
    recipe = DataRecipe(sources=[{"preset": "embedded", "rows": 600}], held_out=0.1)
    corpus = load_corpus(recipe, tokenizer)
    assert len(corpus.train) + len(corpus.validation) == 600
    assert load_corpus(recipe, Refusing(tokenizer)).fingerprint == corpus.fingerprint
    assert set(corpus.domains) == {"code", "prose", "math"}
    assert set(corpus.summary()["validation"]["domains"]) == set(corpus.domains)
    store = pickle.loads(pickle.dumps(corpus.train))
    assert np.array_equal(store.ids, corpus.train.ids)
    assert len(pickle.dumps(corpus.train)) < 0.2 * corpus.train.ids.nbytes
    assert Path(store.ids.filename) == Path(corpus.train.ids.filename)
