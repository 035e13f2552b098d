"""A choice of rows: what is written, that training trains on it and on nothing else, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import dense_llama, save, tiny_tokenizer
from tests.training.runs import WORDS

from smolmoe.data.corpus import load_corpus
from smolmoe.errors import DataError, OutputError, RequestError, SourceError
from smolmoe.recipe import DataRecipe, parse
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.results import Selection
from smolmoe.selection.run import run_select, score_rows, score_text

ROWS = 80


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 rows of two domains and three formats, a tokenizer and a model."""
    folder = tmp_path_factory.mktemp("selecting")
    rng = random.Random(0)
    rows = []
    for number in range(ROWS):
        words = rng.sample(WORDS, rng.randint(2, len(WORDS)))
        row = {
            "text": f"{number} " + " ".join(rng.choices(words, k=rng.randint(15, 80))),
            "domain": "code" if number % 4 == 0 else "prose",
            "format": number % 3,
            "prompt": f"write number {number} with " + " ".join(words),
        }
        rows.append(row)
    write(folder / "text.jsonl", rows)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    save(dense_llama(), folder / "model")
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recipe(place: Path, data: Path | None = None, **values: Any) -> SelectRecipe:
    source = {"path": str(data or place / "text.jsonl")}
    tools = {"model": str(place / "model")} if values.get("score") == "perplexity" else {}
    tools = tools or {"tokenizer": str(place / "tokenizer")}
    return parse(SelectRecipe, {"sources": [source], "budget": 20, "near_duplicates": 0.0, **tools, **values})


def texts(folder: Path) -> set[str]:
    return {row["text"] for row in read(folder / "rows.jsonl")}


def trained_texts(place: Path, rows: Path, cache: Path, **data: Any) -> set[str]:
    """The documents of a training's corpus, from its tokens."""
    tokenizer = tiny_tokenizer()
    values = {"sources": [{"path": str(rows)}], "validation": [{"path": str(place / "held.jsonl")}], **data}
    corpus = load_corpus(parse(DataRecipe, {**values, "cache": str(cache)}), tokenizer)
    return {tokenizer.decode(ids[:-1]) for ids in corpus.train.documents()}


def test_the_folder_is_what_training_trains_on(place: Path, tmp_path: Path) -> None:
    write(place / "held.jsonl", [{"text": "held out and never chosen"}])
    found = {}
    for score in ("entropy", "perplexity", "random"):
        selection = run_select(recipe(place, score=score, by=["domain"]), tmp_path / score)
        assert selection.rows == selection.total == 20
        found[score] = trained_texts(place, selection.path, tmp_path / "cache")
        assert found[score] == texts(tmp_path / score)
        assert len(found[score]) == 20
    assert found["entropy"] != found["perplexity"] != found["random"] != found["entropy"]


def test_rows_index_and_report_agree(place: Path, tmp_path: Path) -> None:
    rows = read(place / "text.jsonl")
    for row in rows:
        row["selection_score"] = "mine"
    source = write(tmp_path / "own.jsonl", rows)
    selection = run_select(recipe(place, source, by=["domain", "format"]), tmp_path / "out")
    chosen, index = read(tmp_path / "out/rows.jsonl"), json.loads((tmp_path / "out/indices.json").read_text())
    assert selection.columns == {"text": "text", "score": "selection_score_", "group": "selection_group"}
    assert len(chosen) == len(index) == 20
    for row, entry in zip(chosen, index, strict=True):
        original = rows[entry["row"] - 1]
        assert {name: row[name] for name in original} == original
        assert row["selection_group"] == f"{row['domain']}, {row['format']}"
        assert entry["source"] == str(source)
        assert len(entry["digest"]) == 64
    assert [entry["row"] for entry in index] == sorted(entry["row"] for entry in index)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report == json.loads(json.dumps(selection.to_json()))
    assert sum(group["chosen"] for group in report["groups"]) == report["rows"] == 20
    assert {group["quota"] for group in report["groups"]} == {3, 4}
    assert report["inputs"][0]["identity"]["files"]
    assert len(report["tokenizer"]) == 64
    best = max(report["groups"], key=lambda group: group["rows"])
    mine = [row["selection_score_"] for row in chosen if row["selection_group"] == ", ".join(best["values"].values())]
    assert best["chosen_scores"]["1"] == max(mine)
    assert best["chosen_scores"]["0"] == min(mine) > best["scores"]["0"]


def test_the_same_again_is_the_same_and_a_draw_follows_its_seed(place: Path, tmp_path: Path) -> None:
    def chosen(name: str, data: Path | None = None, **values: Any) -> set[str]:
        run_select(recipe(place, data, **values), tmp_path / name, overwrite=True)
        return texts(tmp_path / name)

    assert chosen("a") == chosen("b")
    assert chosen("a", plain=True) != chosen("b")
    assert chosen("a", score="random") == chosen("b", score="random") != chosen("c", score="random", seed=1)
    turned = write(tmp_path / "turned.jsonl", read(place / "text.jsonl")[::-1])
    assert chosen("d", turned, score="random") == chosen("a", score="random")
    assert chosen("d", turned) == chosen("b")


def test_a_perplexity_is_the_loss_of_the_document(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    low = run_select(recipe(place, score="perplexity", prefer="low", budget=5), tmp_path / "low")
    high = run_select(recipe(place, score="perplexity", prefer="high", budget=5), tmp_path / "high")
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    tokenizer = tiny_tokenizer()

    def loss(text: str) -> float:
        ids = torch.tensor([[0, *tokenizer(text)["input_ids"]]])[:, :129]
        with torch.no_grad():
            return float(model(ids, labels=ids).loss)

    short = [row["text"] for row in read(place / "text.jsonl") if len(tokenizer(row["text"])["input_ids"]) <= 128]
    by_hand = {text: loss(text) for text in short}
    for selection in (low, high):
        rows = [row for row in read(selection.path) if row["text"] in by_hand]
        assert rows
        for row in rows:
            assert row["selection_score"] == pytest.approx(by_hand[row["text"]], abs=1e-4)
    assert low.groups[0].chosen_scores["1"] < low.groups[0].scores["0.25"]
    assert high.groups[0].chosen_scores["0"] > high.groups[0].scores["0.75"]
    assert low.model == high.model
    assert len(str(low.model)) == 64


def test_weights_and_prompts(place: Path, tmp_path: Path) -> None:
    from smolmoe.selection.entropy import entropy

    tokenizer = tiny_tokenizer()
    run_select(recipe(place, plain=True, text_weight=1.0, prompt_weight=0.25, budget=ROWS), tmp_path / "out")
    for row in read(tmp_path / "out/rows.jsonl"):
        text, prompt = (entropy(tokenizer(row[part])["input_ids"]) for part in ("text", "prompt"))
        assert row["selection_score"] == pytest.approx(text + 0.25 * prompt)
    rows = [{"text": row["text"], "asked": None if n else "hi"} for n, row in enumerate(read(place / "text.jsonl"))]
    plain = write(tmp_path / "plain.jsonl", rows)
    selection = run_select(recipe(place, plain, plain=True, prompt_column="asked", budget=99), tmp_path / "two")
    assert selection.dropped == {"prompt too short": 1}
    for row in read(tmp_path / "two/rows.jsonl"):  # by its text alone, under both weights
        assert row["selection_score"] == pytest.approx(entropy(tokenizer(row["text"])["input_ids"]))


def test_tokens_of_equal_shares(place: Path, tmp_path: Path) -> None:
    selection = run_select(
        recipe(place, unit="tokens", quota="proportional", by=["domain"], budget=2000), tmp_path / "o"
    )
    assert selection.tokens == selection.total <= 2000
    assert selection.shortfall == 2000 - selection.total < 120
    whole = sum(group.supply for group in selection.groups)
    for group in selection.groups:
        assert group.quota == pytest.approx(group.supply * 2000 / whole, abs=1)
        assert group.quota - 60 < group.chosen <= group.quota
        assert group.filled == 0


def test_what_is_left_out_is_counted(place: Path, tmp_path: Path) -> None:
    story = "The three of them went down to the river, where the water was cold, and sat under the old willow."
    rows = [
        {"text": story},
        {"text": story},
        {"text": story.upper()},
        {"text": "short"},
        {"text": story * 30},
        {"text": " "},
        {"text": None},
        {"text": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."},
    ]
    source = write(tmp_path / "rows.jsonl", rows)
    selection = run_select(recipe(place, source, near_duplicates=0.8, max_characters=1000), tmp_path / "out")
    dropped = {"exact duplicate": 1, "near duplicate": 1, "text too short": 1, "text too long": 1, "no text": 2}
    assert selection.dropped == dropped
    assert [entry["row"] for entry in json.loads((tmp_path / "out/indices.json").read_text())] == [1, 8]
    assert (selection.read, selection.rows, selection.shortfall) == (8, 2, 18)


def test_a_group_that_has_too_little_or_nothing(place: Path, tmp_path: Path) -> None:
    rows = [{**row, "kind": "many"} for row in read(place / "text.jsonl")[:30]]
    rows[0]["kind"] = "few"
    rows.append({"text": "short", "kind": "none"})
    selection = run_select(recipe(place, write(tmp_path / "r.jsonl", rows), by=["kind"]), tmp_path / "out")
    many, few = (next(group for group in selection.groups if group.label == label) for label in ("many", "few"))
    assert (few.quota, few.chosen, few.shortfall) == (10, 1, 9)
    assert (many.quota, many.chosen, many.filled) == (10, 19, 9)
    assert selection.empty_groups == ("none",)
    assert selection.shortfall == 0


def test_what_is_held_out_is_what_training_holds_out(place: Path, tmp_path: Path) -> None:
    selections = [
        run_select(recipe(place, score=score, held_out=0.2, budget=30), tmp_path / score)
        for score in ("entropy", "random")
    ]
    held = {row["text"] for row in read(tmp_path / "entropy/held-out.jsonl")}
    assert held == {row["text"] for row in read(tmp_path / "random/held-out.jsonl")}
    assert len(held) == selections[0].held_out > 5
    whole = {"sources": [{"path": str(place / "text.jsonl")}], "held_out": 0.2, "cache": str(tmp_path / "cache")}
    corpus = load_corpus(parse(DataRecipe, whole), tiny_tokenizer())
    assert held == {tiny_tokenizer().decode(ids[:-1]) for ids in corpus.validation.documents()}
    assert not held & texts(tmp_path / "entropy")
    assert not (run_select(recipe(place), tmp_path / "all").out / "held-out.jsonl").exists()


def test_a_tokenizer_can_be_learned(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    values = {"sources": [{"preset": "embedded", "rows": 60}], "tokenizer": 300, "budget": 10, "by": ["domain"]}
    selection = run_select(parse(SelectRecipe, values), tmp_path / "out")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")) == 300
    assert {row["domain"] for row in read(selection.path)} <= {"code", "math", "prose"}


def test_nothing_is_overwritten_unasked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="something other"):
        run_select(recipe(place), tmp_path / "mine", overwrite=True)
    run_select(recipe(place), tmp_path / "out")
    before = texts(tmp_path / "out")
    with pytest.raises(OutputError, match="contains a selection already"):
        run_select(recipe(place, score="random"), tmp_path / "out")
    again = recipe(place, tmp_path / "out/rows.jsonl", budget=5)
    assert run_select(again, tmp_path / "out", overwrite=True).columns["score"] == "selection_score_"
    assert len(texts(tmp_path / "out") & before) == 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt, which smolmoe did not write"):
        run_select(again, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "values", "said"),
    [
        ([{"txt": "x"}], {}, 'no "text" among its keys'),
        ([{"text": "x" * 60}], {"by": ["kind"]}, 'row 1: no "kind" among its columns'),
        ([{"text": "x" * 60}], {"prompt_column": "asked"}, 'row 1: no "asked" among its columns'),
        ([{"text": "x" * 60, "prompt": 3}], {}, '"prompt" is a int, not a string'),
        ([{"text": "x"}, {"text": ""}], {}, "text too short: 1, no text: 1"),
        ([], {}, "there are no rows"),
        ([{"text": "x" * 60}], {"held_out": 0.999999}, "held out: 1"),
    ],
)
def test_rows_that_cannot_be_chosen_from(
    place: Path, tmp_path: Path, rows: list[dict[str, Any]], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        run_select(recipe(place, write(tmp_path / "rows.jsonl", rows), **values), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number(place: Path, tmp_path: Path) -> None:
    """NaN for one token: its rows are left out and counted; NaN for every token: refused."""
    model = dense_llama(tie_word_embeddings=False, rms_norm_eps=0.0)
    rare = tiny_tokenizer()("~")["input_ids"][0]
    model.model.embed_tokens.weight.data[rare] = 0.0  # divided by its own norm
    save(model, tmp_path / "model")
    rows = [{"text": row["text"] + (" ~~" if n < 3 else "")} for n, row in enumerate(read(place / "text.jsonl"))]
    asked = recipe(
        place, write(tmp_path / "r.jsonl", rows), score="perplexity", model=str(tmp_path / "model"), budget=99
    )
    selection = run_select(asked, tmp_path / "out")
    assert selection.dropped == {"score is not a number": 3}
    assert selection.rows == ROWS - 3
    assert not any("~" in text for text in texts(tmp_path / "out"))
    assert np.isfinite([row["selection_score"] for row in read(selection.path)]).all()
    model.lm_head.weight.data[:] = 3e38
    save(model, tmp_path / "model")
    with pytest.raises(DataError, match="score is not a number: 80"):
        run_select(asked, tmp_path / "out2")


def test_rows_that_change_while_they_are_read(place: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "r.jsonl", read(place / "text.jsonl"))

    def meddle(stage: str, done: int, total: int) -> None:
        if stage == "Reading and scoring":
            write(source, read(place / "text.jsonl")[::-1])

    with pytest.raises(DataError, match="changed while they were read"):
        run_select(recipe(place, source), tmp_path / "out", report=meddle)
    assert not (tmp_path / "out").exists()


def test_tools_that_are_not_there(place: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no tokenizer files"):
        run_select(recipe(place, tokenizer=str(tmp_path / "empty")), tmp_path / "out")
    with pytest.raises(SourceError, match=r"no config\.json"):
        run_select(recipe(place, score="perplexity", model=str(tmp_path / "empty")), tmp_path / "out")
    with pytest.raises(RequestError, match="a tokenizer is needed"):
        score_text("some text")


# -- explained -------------------------------------------------------------------------------------------------------


def test_a_text_explained(place: Path) -> None:
    tokenizer = str(place / "tokenizer")
    against = recipe(place, min_characters=0, min_prompt_characters=0)
    found = score_text("a a a a b b c d" * 3, prompt="a b c d e f", tokenizer=tokenizer, against=against, top=3)
    assert found.prompt is not None
    assert found.text.bits < found.text.most
    assert found.score == pytest.approx(0.8 * found.text.normalised + 0.2 * found.prompt.normalised)
    assert found.plain == pytest.approx(0.8 * found.text.bits + 0.2 * found.prompt.bits)
    assert [token.count for token in found.text.frequent] == sorted(
        (t.count for t in found.text.frequent), reverse=True
    )
    every = score_text("a a a a b b c d", tokenizer=tokenizer, against=against, top=99).text.frequent
    assert sum(token.share for token in every) == pytest.approx(1)
    assert sum(token.share_of_entropy for token in every) == pytest.approx(1)
    row = read(place / "text.jsonl")[7]
    chosen = {row["text"]: row for row in _scored(place)}
    same = score_text(row["text"], prompt=row["prompt"], tokenizer=tokenizer, against=against)
    assert same.score == pytest.approx(chosen[row["text"]]["selection_score"])  # what select gives it
    with_model = score_text(row["text"], model=str(place / "model"))
    assert with_model.perplexity == pytest.approx(np.exp(with_model.loss))
    assert with_model.against == "text of this Python installation"
    with pytest.raises(DataError, match="no tokens"):
        score_text("", tokenizer=tokenizer)


def _scored(place: Path) -> list[dict[str, Any]]:
    folder = place / "scored"
    run_select(recipe(place, budget=ROWS, min_characters=0, min_prompt_characters=0), folder, overwrite=True)
    return read(folder / "rows.jsonl")


def test_rows_explained(place: Path) -> None:
    asked = recipe(place, model=str(place / "model"), min_characters=0, min_prompt_characters=0)
    found = score_rows(asked, top=3)
    assert set(found.scores) == {"entropy", "entropy, plain", "loss"}
    assert found.rows == ROWS
    scored = {row["text"][:10]: row["selection_score"] for row in _scored(place)}
    table = found.scores["entropy"]
    assert [row.score for row in table.highest] == sorted(scored.values(), reverse=True)[:3]
    assert [row.score for row in table.lowest] == sorted(scored.values())[:3]
    assert scored[table.highest[0].begins[:10]] == table.highest[0].score
    assert abs(table.length_correlation) < 0.2
    assert {row.tokens for row in table.highest} != {row.tokens for row in found.scores["entropy, plain"].highest}


def test_selection_is_plain_data(place: Path, tmp_path: Path) -> None:
    selection = run_select(recipe(place, score="random"), tmp_path / "out")
    assert isinstance(selection, Selection)
    assert selection.to_json()["recipe"]["score"] == "random"
    json.dumps(selection.to_json())
