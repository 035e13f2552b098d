"""`specialise` and `init`: what they choose, and that what they write runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import dense_llama, save
from tests.training.runs import write_text

import smolmoe
from smolmoe import init, specialise
from smolmoe.core.json_text import read_json
from smolmoe.core.yaml_text import parse_yaml
from smolmoe.data.survey import Domain, Survey
from smolmoe.data.text import read_documents
from smolmoe.errors import DataError, OutputError, RequestError
from smolmoe.pipeline import fitting
from smolmoe.pipeline.sizes import choose_schedule, choose_shape
from smolmoe.pipeline.specialise import Specialisation
from smolmoe.pipeline.subject import Machine, Subject
from smolmoe.recipe.files import load
from smolmoe.training.rate import Rate

GB = 10**9
SUBJECT = Subject(Path("m"), 135 * 10**6, 455 * 10**6, 135 * 10**6, 5, "MoE", GB, 2048, 49152, 576, 30, ())
MACHINE = Machine("cpu", "a CPU", 24 * GB, 100 * GB, 4, 4, False)
TEXT = Survey(
    {name: Domain(name, 1000, 4_000_000, [50] * 4, 10**6, [100, 300] * 50) for name in "abcde"}, 0, 0.02, False
)
RATE = Rate(1000.0, 1e9)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specialise")
    save(dense_llama(), folder / "dense")
    write_text(folder / "text.jsonl", documents=90, domains=("code", "math", "prose"))
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (folder / "text.jsonl").read_text().splitlines()]
        kept = [{"text": row["text"]} for row in rows if (row["domain"] == "code") == (name == "one")]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return folder


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """A known speed, so that the machine's does not matter, and little to measure."""
    monkeypatch.setattr("smolmoe.training.rate.measure_rate", lambda *args, **options: Rate(1000.0, 1e9))
    monkeypatch.setenv("SMOLMOE_CACHE", str(place / "cache"))


def go(place: Path, out: Path, *data: str, **options: Any) -> Specialisation:
    data = data or (str(place / "text.jsonl"),)
    return specialise(place / "dense", data, out, **{"minutes": 0.5, **options})


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Specialisation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smolmoe.training.rate.measure_rate", lambda *args, **options: Rate(1000.0, 1e9))
        patch.setenv("SMOLMOE_CACHE", str(place / "cache"))
        return go(place, tmp_path_factory.mktemp("out") / "run")


# -- what is chosen ---------------------------------------------------------------------------------------------------


def test_blocks_hold_nine_of_ten_documents_and_batches_fit_into_memory() -> None:
    shape = choose_shape(SUBJECT, TEXT, MACHINE)
    assert (shape.length, shape.optimizer) == (512, "adamw_torch_fused")
    assert shape.memory < 0.85 * MACHINE.memory
    less = choose_shape(SUBJECT, TEXT, Machine("cpu", "", 11 * GB, GB, 1, 1, False))
    assert (less.length, less.optimizer) == (512, "adamw_torch_fused")
    assert less.batch < shape.batch
    short = choose_shape(SUBJECT, TEXT, Machine("cpu", "", int(9.8 * GB), GB, 1, 1, False))
    assert (short.length, short.optimizer) == (256, "adamw_torch_fused")
    assert "longer ones do not fit" in short.choices[0].why


def test_without_memory_for_adam_adafactor_is_used_and_without_any_the_need_is_said() -> None:
    shape = choose_shape(SUBJECT, TEXT, Machine("cpu", "", 7 * GB, GB, 1, 1, False))
    assert shape.optimizer == "adafactor"
    with pytest.raises(RequestError, match=r"takes at least 4\.\d+ GB of memory, and 3 GB are free"):
        choose_shape(SUBJECT, TEXT, Machine("cpu", "", 3 * GB, GB, 1, 1, False))


@pytest.mark.parametrize("minutes", [20, 120, 600])
def test_the_time_is_what_the_steps_take(minutes: int) -> None:
    shape = choose_shape(SUBJECT, TEXT, MACHINE)
    found = choose_schedule(SUBJECT, TEXT, MACHINE, shape, RATE, minutes, True)
    seconds = found.steps * (found.seconds["joint"] + found.seconds["dense"])
    seconds += found.router_steps * found.seconds["routers"]
    assert 0.8 * minutes * 60 * 0.7 < seconds <= minutes * 60 * 0.7 + found.seconds["joint"] * 20
    assert bool(found.warnings) == (found.steps < 60)


def test_no_text_is_read_more_than_three_times() -> None:
    shape = choose_shape(SUBJECT, TEXT, MACHINE)
    found = choose_schedule(SUBJECT, TEXT, MACHINE, shape, Rate(1e6, 1e12), 6000, True)
    assert 2.8 * TEXT.tokens < found.steps * found.blocks * shape.length <= 3 * TEXT.tokens
    once = choose_schedule(SUBJECT, TEXT, MACHINE, shape, RATE, None, True)
    assert once.steps * once.blocks * shape.length == pytest.approx(TEXT.tokens, rel=0.05)


def test_larger_models_learn_at_lower_rates() -> None:
    shape = choose_shape(SUBJECT, TEXT, MACHINE)
    big = Subject(**{**vars(SUBJECT), "dense": 3 * 10**9})
    rates = [choose_schedule(one, TEXT, MACHINE, shape, RATE, 600, True).rate for one in (SUBJECT, big)]
    assert rates[0] > rates[1]


# -- what is run ------------------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_says_hours(place: Path, tmp_path: Path) -> None:
    found = go(place, tmp_path / "run", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert [cost.stage for cost in found.costs] == [stage["name"] for stage in load("specialise-model")["stages"]]
    by_name = {cost.stage: cost for cost in found.costs}
    assert by_name["experts"].tokens == by_name["dense"].tokens > 0
    assert by_name["experts"].memory > by_name["dense"].memory > 0
    assert found.seconds == sum(cost.seconds for cost in found.costs)
    assert found.result is None
    assert found.accuracy is None


@pytest.mark.slow
def test_every_domain_has_its_expert_and_the_dense_model_reads_the_same(run: Specialisation) -> None:
    config = read_json(run.model / "config.json")
    assert list(config["expert_names"]) == ["code", "math", "prose"]
    assert config["num_experts_per_tok"] == 1
    recipes = [read_json(run.out / name / "run.json")["recipe"] for name in ("experts", "dense")]
    assert recipes[0]["data"] == recipes[1]["data"]
    assert recipes[0]["trainer"] == recipes[1]["trainer"]
    assert run.result is not None
    assert run.result.stages["moe"]["result"]["verification"]["passed"]


@pytest.mark.slow
def test_no_held_out_document_is_trained_on(run: Specialisation) -> None:
    train, held_out = (read_documents(run.out / "text" / f"{side}.jsonl") for side in ("train", "validation"))
    assert len(train) + len(held_out) == 90
    assert not {one.text for one in train} & {one.text for one in held_out}


@pytest.mark.slow
def test_the_end_says_accuracy_losses_and_the_page(run: Specialisation) -> None:
    assert run.accuracy is not None
    assert 0 < run.accuracy <= 1
    assert list(run.losses) == ["all", "code", "math", "prose"]
    assert list(run.losses["all"]) == ["source", "dense, same text", "MoE"]
    assert run.page is not None
    assert "<html" in run.page.read_text(encoding="utf-8")
    assert run.verdict
    assert {"accuracy", "losses", "forecast", "choices", "page"} <= set(run.to_json())


@pytest.mark.slow
def test_the_same_again_continues_and_another_request_is_refused(run: Specialisation, place: Path) -> None:
    again = go(place, run.out)
    assert again.result is not None
    assert not any(record["done"] for record in again.result.stages.values())
    assert again.choices == run.choices
    with pytest.raises(OutputError, match=r"minutes: 0\.5 there, 9"):
        go(place, run.out, minutes=9)
    with pytest.raises(OutputError, match="something other"):
        go(place, place)


@pytest.mark.slow
def test_an_edited_recipe_is_what_runs(run: Specialisation, place: Path) -> None:
    recipe = run.out / "recipe.yaml"
    before = recipe.read_text(encoding="utf-8")
    assert "% of your documents are not longer" in before
    recipe.write_text(before.replace("weight: 0.35", "weight: 0.5"), encoding="utf-8")
    try:
        with pytest.raises(OutputError, match=r"guidance\.weight: 0\.35 there, 0\.5 here"):
            go(place, run.out)
    finally:
        recipe.write_text(before, encoding="utf-8")


def test_untagged_text_gives_experts_without_names(place: Path, tmp_path: Path) -> None:
    found = go(place, tmp_path / "run", str(place / "two.jsonl"), experts=4)
    assert found.result is not None
    assert found.accuracy is None
    assert list(found.result.stages) == ["text", "moe", "experts", "dense", "compare", "report", "page"]
    assert "the experts get no names" in found.notes[0]
    config = read_json(found.model / "config.json")
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 2)
    assert "expert_names" not in config


# -- the text ---------------------------------------------------------------------------------------------------------


def domains(place: Path, *data: str, **options: Any) -> list[str]:
    return list(go(place, place / "new", *data, dry_run=True, **options).choices[0]["shown"].split(": ")[1].split(", "))


def test_names_and_files_are_domains(place: Path) -> None:
    one, two = str(place / "one.jsonl"), str(place / "two.jsonl")
    assert domains(place, f"a={one}", f"b={two}") == ["a 30", "b 60"]
    assert domains(place, one, two) == ["one 30", "two 60"]


def test_text_that_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    one = str(place / "one.jsonl")
    with pytest.raises(RequestError, match=r"3 domains .* each needs an expert"):
        go(place, tmp_path / "run", experts=2, dry_run=True)
    with pytest.raises(RequestError, match="30 documents have no domain; others have"):
        go(place, tmp_path / "run", one, f"b={place / 'two.jsonl'}", dry_run=True)
    with pytest.raises(DataError, match="no such file"):
        go(place, tmp_path / "run", "nowhere.jsonl", dry_run=True)
    with pytest.raises(RequestError, match="is given in hours too"):
        go(place, tmp_path / "run", hours=1, dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_leaves_no_folder_that_is_in_the_way_of_its_correction(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        go(place, tmp_path / "runs" / "mine", str(tmp_path / "nothing.jsonl"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError):
        go(place, tmp_path / "there", str(tmp_path / "nothing.jsonl"))
    assert not list((tmp_path / "there").iterdir())


def test_a_full_disk_is_seen_before(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Machine("cpu", "", 24 * GB, 1000, 1, 1, False)
    monkeypatch.setattr(fitting, "this_machine", lambda out: full)
    with pytest.raises(RequestError, match=r"takes about .* and 1 kB are free"):
        go(place, tmp_path / "run")


# -- init -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["specialise", "grow", "continue"])
def test_init_writes_a_recipe_that_fits(goal: str, place: Path, tmp_path: Path) -> None:
    out = init(place / "dense", [str(place / "text.jsonl")], tmp_path / "mine.yaml", goal=goal, minutes=0.5)
    text = out.read_text(encoding="utf-8")
    assert "not longer" in text
    values = parse_yaml(text)
    assert str(place / "dense") in text
    assert ("stages" in values) == (goal != "continue")
    start = smolmoe.train if goal == "continue" else smolmoe.run
    start(out, set=[f"out={tmp_path / 'run'}"], dry_run=True)
    with pytest.raises(OutputError, match="exists already"):
        init(place / "dense", [str(place / "text.jsonl")], out)
    with pytest.raises(RequestError, match="is missing"):
        init(place / "dense", out=tmp_path / "other.yaml")


def test_what_init_writes_runs(place: Path, tmp_path: Path) -> None:
    out = init(place / "dense", [str(place / "text.jsonl")], tmp_path / "mine.yaml", goal="continue", minutes=0.2)
    smolmoe.train(out, set=["trainer.max_steps=2", f"out={tmp_path / 'run'}"])
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_init_without_a_model_has_the_shipped_values(tmp_path: Path) -> None:
    assert parse_yaml(init(out=tmp_path / "a.yaml").read_text(encoding="utf-8")) == load("specialise-model") | {
        "out": "runs/a"
    }


def test_a_training_without_a_model_names_the_shipped_one(tmp_path: Path) -> None:
    values = parse_yaml(init(out=tmp_path / "a.yaml", goal="continue").read_text(encoding="utf-8"))
    assert values["model"] == {"path": load("grow")["source"]}
    assert "{" not in values["model"]["path"]


@pytest.mark.slow
def test_a_real_model_is_specialised(shared: Path, tmp_path: Path) -> None:
    text, held_out = (shared / "data/mix" / name for name in ("train.jsonl", "validation.jsonl"))
    out = tmp_path / "run"
    found = specialise(shared / "models/mix_llama_6m", [text], out, validation=[held_out], minutes=0.1)
    assert found.accuracy is not None
    assert found.accuracy > 0.6
    assert list(found.losses) == ["all", "chat", "code", "math", "stories", "web"]
    assert abs(found.losses["all"]["MoE"] - found.losses["all"]["source"]) < 0.1
