"""Choosing rows: what the entropy score measures, quotas, duplicates, and rows of every kind of source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from smolmoe.data.presets import PRESETS
from smolmoe.errors import DataError, RequestError
from smolmoe.recipe import parse
from smolmoe.recipe.data import SourceRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.duplicates import Duplicates, shingles
from smolmoe.selection.entropy import Measured, entropy
from smolmoe.selection.quotas import choose, even_quotas, preference, proportional_quotas, rank_correlation
from smolmoe.selection.rows import Row, group_of, open_rows, with_documents

# -- entropy ---------------------------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_counts() -> None:
    assert entropy([7, 7, 7]) == entropy([]) == 0
    assert entropy([1, 2, 3, 4]) == 2
    assert entropy([1, 1, 2, 3]) == pytest.approx(1.5)


def texts_of_unequal_lengths(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Tokens by Zipf's law, and texts that differ in how many there are to choose from."""
    lengths = (2 ** rng.uniform(4, 10, count)).astype(int)
    variety = rng.integers(100, 800, count)
    return [(rng.zipf(1.3, n) % v).astype(np.int64) for n, v in zip(lengths, variety, strict=True)]


def measured_texts(texts: list[np.ndarray]) -> Measured:
    measured = Measured()
    for ids in texts:
        measured.add(ids)
    return measured


def test_long_texts_do_not_win() -> None:
    rng = np.random.default_rng(0)
    measured = measured_texts(texts_of_unequal_lengths(rng, 400))
    tokens, plain = np.array(measured.tokens, dtype=float), np.array(measured.plain)
    assert rank_correlation(plain, tokens) > 0.7
    assert rank_correlation(plain / np.log2(tokens), tokens) < -0.6  # dividing by the most there can be overshoots
    scores = measured.normalised()
    assert abs(rank_correlation(scores, tokens)) < 0.05
    best = np.argsort(-scores)[:100]
    assert 0.8 < tokens[best].mean() / tokens.mean() < 1.25  # nor at the top alone


def test_rich_texts_win_among_those_as_long() -> None:
    rng = np.random.default_rng(1)
    texts = texts_of_unequal_lengths(rng, 300)
    measured = measured_texts(texts)
    for ids in texts[::10]:
        poor, same, rich = (
            measured.compare(other.tolist()).deviations
            for other in (np.resize(ids[:4], len(ids)), ids, np.arange(len(ids)))
        )
        assert poor < same < rich
        assert poor < -1


def test_a_text_is_measured_from_the_line_through_its_neighbours() -> None:
    """Against numpy's own fit, by hand; and whatever the order of the texts."""
    rng = np.random.default_rng(2)
    texts = texts_of_unequal_lengths(rng, 150)
    measured = measured_texts(texts)
    tokens, plain = np.array(measured.tokens), np.array(measured.plain)
    order = np.argsort(tokens, kind="stable")
    index = int(order[75])  # 50 shorter ones, 50 longer ones
    near = order[25:126]
    slope, offset = np.polyfit(np.log(tokens[near]), plain[near], 1)
    rest = plain[near] - (slope * np.log(tokens[near]) + offset)
    expected = (plain[index] - slope * np.log(tokens[index]) - offset) / rest.std()
    assert measured.normalised()[index] == pytest.approx(expected, rel=0.02, abs=0.02)
    place = measured.compare(texts[index].tolist())
    assert place.deviations == pytest.approx(measured.normalised()[index])
    assert (place.shortest, place.longest) == (tokens[near].min(), tokens[near].max())
    assert measured_texts(texts[::-1]).normalised() == pytest.approx(measured.normalised()[::-1])


@pytest.mark.parametrize(
    ("name", "column"), [("stories_tinystories", "text"), ("math_gsm8k", "answer"), ("web_c4", "text")]
)
def test_real_text_does_not_win_by_length(shared: Path, name: str, column: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "mix_llama_6m")
    lines = (shared / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:250]
    ids = tokenizer([json.loads(line)[column] for line in lines], verbose=False)["input_ids"]
    measured = measured_texts(list(map(np.array, ids)))
    tokens = np.array(measured.tokens, dtype=float)
    assert rank_correlation(np.array(measured.plain), tokens) > 0.75
    assert abs(rank_correlation(measured.normalised(), tokens)) < 0.08


def test_groups_have_their_own_neighbours_unless_they_are_small() -> None:
    rng = np.random.default_rng(3)
    measured = Measured()
    for _ in range(40):
        measured.add(rng.integers(0, 10, 64), group=0)
        measured.add(rng.integers(0, 1000, 64), group=1)
    assert np.abs(measured.normalised()).max() < 4
    assert measured.compare(list(range(64)), group=0).deviations > measured.compare(list(range(64)), group=1).deviations
    measured.add(list(range(64)), group=2)
    assert measured.neighbours(2).place(64, 3.0) == measured.neighbours(3).place(64, 3.0)
    assert measured.neighbours(2).place(64, 3.0) != measured.neighbours(0).place(64, 3.0)


def test_texts_that_do_not_differ_score_nothing() -> None:
    assert list(measured_texts([np.array([1, 2, 3, 4])] * 20).normalised()) == [0.0] * 20
    assert list(measured_texts([np.array([1, 2, 3]), np.array([1])]).normalised()) == [0.0, 0.0]
    assert list(measured_texts([np.array([], dtype=int)]).normalised()) == [0.0]
    assert len(Measured().normalised()) == 0


# -- quotas ----------------------------------------------------------------------------------------------------------

supplies = st.lists(st.integers(0, 50), min_size=1, max_size=8).map(np.array)


@given(supplies, st.integers(1, 200))
def test_quotas_add_up(supply: np.ndarray, total: int) -> None:
    even = even_quotas(total, supply)
    assert even.sum() == (total if supply.any() else 0)
    assert not even[supply == 0].any()
    assert even[supply > 0].max(initial=0) - even[supply > 0].min(initial=10**9) <= 1
    shares = proportional_quotas(total, supply)
    assert shares.sum() == min(total, supply.sum())
    assert (shares <= supply).all()
    if total <= supply.sum():
        assert (abs(shares - supply * total / max(1, supply.sum())) < 1).all()


def test_what_is_left_goes_to_the_largest() -> None:
    assert even_quotas(11, np.array([5, 9, 0, 7])).tolist() == [3, 4, 0, 4]
    assert proportional_quotas(5, np.array([3, 3, 3])).tolist() == [2, 2, 1]  # equal remainders: in order
    assert proportional_quotas(10, np.array([55, 25, 20])).tolist() == [6, 2, 2]


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["even_then_fill", "proportional"]), st.booleans())
def test_a_choice_keeps_to_its_budget(data: st.DataObject, quota: str, by_tokens: bool) -> None:
    count = data.draw(st.integers(1, 40))
    numbers = st.integers(0, 3)
    groups = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    wanted = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=count, max_size=count)))
    draw = st.integers(1, 9) if by_tokens else st.just(1)
    sizes = np.array(data.draw(st.lists(draw, min_size=count, max_size=count)))
    budget = data.draw(st.integers(1, 120))
    choice = choose(wanted, groups, sizes, budget, quota, 4)
    assert sizes[choice.chosen].sum() <= budget
    assert not (choice.filled & ~choice.chosen).any()
    if not by_tokens:
        assert choice.chosen.sum() == min(budget, count)
        for group in range(4):
            taken = choice.chosen & (groups == group)
            assert taken.sum() >= min(choice.quotas[group], (groups == group).sum())
            left = (groups == group) & ~taken
            if taken.any() and left.any():
                assert wanted[taken].min() >= wanted[left].max()


def test_a_shortfall_is_filled_by_the_best_that_is_left() -> None:
    groups = np.array([0, 1, 1, 1, 2, 2, 2, 2])
    wanted = np.array([0, 5, 1, 2, 9, 8, 7, 6.0])
    choice = choose(wanted, groups, np.ones(8, dtype=int), 6, "even_then_fill", 3)
    assert choice.quotas.tolist() == [2, 2, 2]
    assert np.flatnonzero(choice.chosen).tolist() == [0, 1, 3, 4, 5, 6]
    assert np.flatnonzero(choice.filled).tolist() == [6]


def test_the_middle_is_next_to_the_median_of_the_group() -> None:
    scores = np.array([1.0, 2, 3, 100, 101, 102, 103])
    groups = np.array([0, 0, 0, 1, 1, 1, 1])
    middle = preference(scores, groups, "middle")
    assert middle.argmax() == 1
    assert sorted(np.argsort(-middle[3:])[:2]) == [1, 2]
    assert preference(scores, groups, "high").argmax() == preference(-scores, groups, "low").argmax() == 6


def test_rank_correlation() -> None:
    assert rank_correlation([1, 5, 9], [2, 3, 100]) == pytest.approx(1)
    assert rank_correlation([1, 5, 9], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) == rank_correlation([], []) == 0
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)


# -- duplicates ------------------------------------------------------------------------------------------------------

STORY = "The three of them went down to the river, where the water was cold and clear, and sat under the old willow. "
OTHER = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many? "


def test_the_first_of_those_that_repeat_each_other_is_kept() -> None:
    seen = Duplicates(0.8)
    assert seen.repeats(STORY) is None
    assert seen.repeats(STORY) == "exact"
    assert seen.repeats(STORY.upper().replace(" ", "\n ")) == "near"
    assert seen.repeats(STORY + "!") == "near"
    assert seen.repeats(OTHER) is None
    assert seen.repeats(STORY[:50] + OTHER) is None
    exact = Duplicates(0)
    assert exact.repeats(STORY) is None
    assert exact.repeats(STORY.upper()) is None
    assert exact.repeats(STORY) == "exact"


def test_similarity_is_that_of_the_runs_of_characters() -> None:
    """Texts at both sides of the threshold, and what is never whole words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    for changed, found in ((10, "near"), (400, None)):
        base = rng.choice(letters, 4000)
        other = base.copy()
        other[rng.choice(4000, changed, replace=False)] = "#"
        seen = Duplicates(0.8)
        assert seen.repeats("".join(base)) is None
        assert seen.repeats("".join(other)) == found
    seen = Duplicates(0.8)
    assert seen.repeats("我们一起去河边，水很清澈，坐在老柳树下。" * 3) is None
    assert seen.repeats("我们一起去河边，水很清澈，坐在老柳树下。" * 3 + "好") == "near"
    assert len(shingles("")) == 0
    assert len(shingles("ab")) == 1
    assert Duplicates(0.8).repeats("\ud800 half a pair") is None


# -- rows ------------------------------------------------------------------------------------------------------------


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files_keep_all_their_columns(tmp_path: Path) -> None:
    jsonl(tmp_path / "d/a.jsonl", [{"body": "one", "n": 1}, {"body": ""}, {"body": "two", "tags": ["x"]}])
    parquet.write_table(pyarrow.table({"body": ["three"], "n": [3], "kind": ["k"]}), tmp_path / "d/b.parquet")
    (tmp_path / "d/c.txt").write_text("four\n\nfive\n")
    found = list(open_rows(SourceRecipe(path=str(tmp_path / "d"), text="body", domain="z")).rows())
    assert [row.values for row in found] == [
        {"body": "one", "n": 1, "domain": "z"},
        {"body": "", "domain": "z"},
        {"body": "two", "tags": ["x"], "domain": "z"},
        {"body": "three", "n": 3, "kind": "k", "domain": "z"},
        {"body": "four", "domain": "z"},
        {"body": "five", "domain": "z"},
    ]
    assert [(Path(row.origin).name, row.number) for row in found][2:5] == [
        ("a.jsonl", 3),
        ("b.parquet", 1),
        ("c.txt", 1),
    ]
    few = open_rows(SourceRecipe(path=str(tmp_path / "d"), text="body", rows=2)).rows()
    assert [row.values["body"] for row in few] == ["one", "", "two"]  # two with text, as in training


def test_rows_of_a_preset_have_the_columns_of_its_data_set(shared: Path) -> None:
    lines = (shared / "data/cosmopedia_relabelled.jsonl").read_text(encoding="utf-8").splitlines()[:5]
    rows = [Row("set", n, json.loads(line), "text") for n, line in enumerate(lines, 1)]
    found = list(with_documents("cosmopedia-100k", iter(rows), SourceRecipe(preset="cosmopedia-100k")))
    assert [row.number for row in found] == [1, 2, 3, 4, 5]
    assert set(found[0].values) == {*rows[0].values, "domain"}
    assert found[0].values["text"] == rows[0].values["text"].strip()
    dolly = Row("set", 4, {"instruction": "Why?", "context": "", "response": "Because.", "category": "qa"}, "text")
    assert (
        next(with_documents("dolly", iter([dolly]), SourceRecipe(preset="dolly"))).values["text"]
        == "User: Why?\nAssistant: Because."
    )
    assert PRESETS["wikitext"].joins_rows


def test_groups_are_values_of_columns() -> None:
    row = Row("f", 3, {"a": 1, "b": None, "c": [1], "nan": float("nan")}, "text")
    assert group_of(row, ("a", "b")) == ("1", "")
    assert (group_of(row, ("nan",)), row.string("nan")) == (("",), None)
    assert group_of(row, ()) == ()
    with pytest.raises(DataError, match='row 3: no "d" among its columns'):
        group_of(row, ("a", "d"))
    with pytest.raises(DataError, match='"c" is a list, which cannot be used for grouping'):
        group_of(row, ("c",))


# -- what may be asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"score": "perplexity", "tokenizer": None}, "model"),
        ({"score": "perplexity", "model": "m"}, "tokenizer"),
        ({"tokenizer": None}, "tokenizer"),
        ({"score": "random", "tokenizer": None, "unit": "tokens"}, "tokenizer"),
        ({"score": "random", "prefer": "low"}, "prefer"),
        ({"score": "random", "plain": True}, "plain"),
        ({"score": "length"}, "score"),
        ({"budget": 0}, "budget"),
        ({"near_duplicates": 1.5}, "near_duplicates"),
        ({"by": ["a", "a"]}, "by"),
        ({"text_weight": 0, "prompt_weight": 0}, "prompt_weight"),
        ({"max_characters": 10}, "max_characters"),
        ({"sources": []}, "sources"),
        ({"sources": [{"path": "a", "weight": 1.0}]}, "sources"),
        ({"sources": [{"path": "a"}, {"path": "b", "text": "c"}]}, "sources"),
        ({"buget": 3}, "buget"),
    ],
)
def test_what_cannot_be_asked(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(SelectRecipe, {"sources": [{"path": "a"}], "tokenizer": "t", **changes})
    assert caught.value.field == field


def test_what_is_preferred() -> None:
    given = {"sources": [{"path": "a"}], "model": "m"}
    assert parse(SelectRecipe, given).preferred == "high"
    assert parse(SelectRecipe, {**given, "score": "perplexity"}).preferred == "middle"
    assert parse(SelectRecipe, {**given, "score": "perplexity", "prefer": "low"}).preferred == "low"
