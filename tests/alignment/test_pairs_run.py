"""Preference pairs of a real model on real sentences: the same whenever they are made, killed in between or not."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from helpers import dense_llama, moe_of, save
from tests.processes import Child, killed_in

from smolmoe.alignment.pairs import PairsReport, edit_distance
from smolmoe.alignment.pairs_run import make_pairs, run_pairs
from smolmoe.errors import DataError, OutputError, RequestError, SourceError
from smolmoe.recipe.base import parse
from smolmoe.recipe.pairs import PairsRecipe


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = (shared / "data" / "gec_jfleg_coedit_schema.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def recipe(shared: Path, data: Path, tmp_path: Path) -> PairsRecipe:
    model = str(shared / "models" / "stories260K")
    return PairsRecipe(model=model, data=str(data), out=tmp_path / "out", max_new_tokens=8, batch_size=2)


@pytest.fixture(scope="module")
def made(shared: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PairsRecipe, PairsReport]:
    out = tmp_path_factory.mktemp("made") / "out"
    model = str(shared / "models" / "stories260K")
    recipe = PairsRecipe(model=model, data=str(data), out=out, max_new_tokens=8, batch_size=2)
    return recipe, make_pairs(recipe)


def pairs_of(recipe: PairsRecipe) -> list[dict[str, object]]:
    return [json.loads(line) for line in (recipe.out / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def test_pairs_of_a_real_model(made: tuple[PairsRecipe, PairsReport], data: Path) -> None:
    recipe, report = made
    rows = {row["src"]: row for row in map(json.loads, data.read_text(encoding="utf-8").splitlines())}
    pairs = pairs_of(recipe)
    assert report.pairs == len(pairs) > 6
    assert report.pairs + report.ties + report.same == report.prompts == 12
    assert sum(report.wins) == len(pairs)
    assert [pair["prompt"] for pair in pairs] == [src for src in rows if src in {pair["prompt"] for pair in pairs}]
    for pair in pairs:
        references = rows[pair["prompt"]]["refs"]
        chosen, rejected = (min(edit_distance(pair[key], one) for one in references) for key in ("chosen", "rejected"))
        assert chosen < rejected
        assert pair["score_chosen"] > pair["score_rejected"]
    assert report.asked == 4000
    assert {"model_sha256", "data_sha256", "seed", "template"} <= set(report.settings)


def test_they_are_the_same_when_made_again_and_others_by_another_seed(
    made: tuple[PairsRecipe, PairsReport], recipe: PairsRecipe, tmp_path: Path
) -> None:
    assert make_pairs(recipe).sha256 == made[1].sha256
    other = make_pairs(recipe.model_copy(update={"out": tmp_path / "other", "seed": 1}))
    assert other.sha256 != made[1].sha256


def test_batches_of_another_size_hold_the_same_answers(
    made: tuple[PairsRecipe, PairsReport], recipe: PairsRecipe
) -> None:
    """Up to rounding, which decides no token in these."""
    assert make_pairs(recipe.model_copy(update={"batch_size": 5})).sha256 == made[1].sha256


def test_fewer_prompts_are_drawn_by_the_seed(made: tuple[PairsRecipe, PairsReport], recipe: PairsRecipe) -> None:
    few = recipe.model_copy(update={"prompts": 5})
    assert make_pairs(few).prompts == 5
    assert all(pair in pairs_of(made[0]) for pair in pairs_of(few))


def test_a_killed_run_goes_on_to_the_same_pairs(made: tuple[PairsRecipe, PairsReport], recipe: PairsRecipe) -> None:
    whole = made[0].out / "pairs.jsonl"
    code = "import sys; from smolmoe.alignment.pairs_run import *; "
    code += "make_pairs(PairsRecipe.model_validate_json(sys.argv[1]))"
    killed = killed_in("smolmoe.alignment.pairs_run:_Answering.__call__", 2)  # when one shard is there
    with Child(killed + code, recipe.model_dump_json()) as process:
        assert process.wait() == -signal.SIGKILL, process.stderr
    assert not (recipe.out / "pairs.jsonl").exists()
    with pytest.raises(OutputError, match="unfinished"):
        make_pairs(recipe)
    first = (recipe.out / "samples" / "00000.json").stat().st_mtime_ns
    assert make_pairs(recipe, resume=True).sha256 == made[1].sha256
    assert (recipe.out / "samples" / "00000.json").stat().st_mtime_ns == first
    assert (recipe.out / "pairs.jsonl").read_bytes() == whole.read_bytes()


def test_a_stage_of_a_pipeline_goes_on_by_itself(recipe: PairsRecipe) -> None:
    first = run_pairs(recipe)
    assert run_pairs(recipe) == first
    assert first["pairs"] == len(pairs_of(recipe))


def test_another_recipe_does_not_go_on(made: tuple[PairsRecipe, PairsReport]) -> None:
    with pytest.raises(OutputError, match=r"temperatures: \[1.0, 0.5\] there, \[1.0, 0.7\] here"):
        make_pairs(made[0].model_copy(update={"temperatures": (1.0, 0.7)}), resume=True)


def test_an_moe_gives_pairs_too(recipe: PairsRecipe, tmp_path: Path) -> None:
    model = save(moe_of(dense_llama(max_position_embeddings=512)), tmp_path / "moe")
    assert make_pairs(recipe.model_copy(update={"model": str(model)})).pairs > 0


def test_answers_that_cannot_differ_are_refused_at_once(data: Path, tmp_path: Path) -> None:
    values = {"model": "m", "data": str(data), "out": tmp_path / "out"}
    with pytest.raises(RequestError, match=r"temperatures.*both are 0"):
        parse(PairsRecipe, {**values, "temperatures": (0, 0)})
    with pytest.raises(RequestError, match=r"temperatures.*each must be 0 \(greedy\) or above"):
        parse(PairsRecipe, {**values, "temperatures": (1.0, -0.5)})


def test_bad_input_leaves_no_folder(recipe: PairsRecipe, tmp_path: Path) -> None:
    bare = save(dense_llama(), tmp_path / "bare", tokenizer=False)
    cases = [
        ({"model": str(bare)}, SourceError, "no tokenizer"),
        ({"source_column": "text"}, DataError, 'no "text"'),
        ({"max_new_tokens": 512}, DataError, r"line \d+: \d+ tokens and 512 new ones exceed the model's 512 positions"),
        ({"template": "none"}, RequestError, "exactly once"),
        ({"chat": True}, SourceError, "no chat template"),
        ({"device": "nowhere"}, RequestError, "device='nowhere': must be auto"),
    ]
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            make_pairs(recipe.model_copy(update=change))
        assert not recipe.out.exists()
