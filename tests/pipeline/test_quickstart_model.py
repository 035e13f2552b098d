"""`quickstart --model`, much reduced: on a native family, on one that becomes generic, and on a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zoo
from tests.helpers import save
from tests.training.runs import rows

from smolmoe.cli.quickstart import show_quickstart
from smolmoe.core import machine
from smolmoe.core.json_text import read_json
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import load_tokenizer
from smolmoe.pipeline import lessons
from smolmoe.pipeline.quickstart import default_folder, quickstart
from smolmoe.pipeline.run import PipelineResult

CHANGES = [
    "stages.corpus.corpus.megabytes=0.6",
    "defaults.data.length=64",
    "stages.named.train.evaluation.tokens=200",
    "stages.named.train.trainer.max_steps=20",
    "stages.named.train.trainer.per_device_train_batch_size=16",
    "stages.named.train.trainer.learning_rate=0.01",
    *(f"stages.{name}.probe.{key}=200" for name in ("before", "after") for key in ("tokens", "probe_tokens")),
    "stages.answers.generate.max_new_tokens=4",
]
STAGES = ["corpus", "moe", "before", "named", "after", "answers", "page"]


def go(model: Path | str, out: Path, **options: Any) -> PipelineResult:
    return quickstart(out, **{"model": model, "changes": CHANGES, "minutes": 100, **options})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(zoo.build("llama", max_position_embeddings=512), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def found(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    return go(source, tmp_path_factory.mktemp("quickstart") / "run")


def result(run: PipelineResult, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = run.stages[stage]["result"]
    return values


def test_the_model_is_upcycled_and_verified(found: PipelineResult) -> None:
    assert list(found.stages) == STAGES
    assert result(found, "moe")["verification"]["passed"]
    assert result(found, "moe")["target"] == "mixtral"


def test_the_experts_have_the_domains_names(found: PipelineResult) -> None:
    assert read_json(found.out / "named/model/config.json")["expert_names"] == ["code", "math", "prose"]


def test_only_routers_are_trained_so_that_the_answers_stay_the_models(found: PipelineResult) -> None:
    summary = result(found, "named")
    assert summary["held_out"]["loss"] == pytest.approx(summary["before"]["loss"], abs=1e-5)
    assert not list((found.out / "named/checkpoints").glob("*"))


def test_routers_learn_where_each_domain_goes(found: PipelineResult) -> None:
    losses = [row["guidance"] for row in rows(found.out / "named", "step")]
    assert sum(losses[-5:]) < sum(losses[:5])
    for stage in ("before", "after"):
        assert all(sum(shares.values()) == pytest.approx(1) for shares in result(found, stage)["routing"].values())
    assert list(result(found, "before")["routing"]["code"]) == ["expert 0", "expert 1", "expert 2"]
    assert list(result(found, "after")["routing"]["code"]) == ["code", "math", "prose"]


def test_three_prompts_are_answered_each_with_the_expert_that_leads(found: PipelineResult) -> None:
    answers = lessons.answers(found.stages)
    assert len(answers) == 3
    for answer in answers:
        assert answer["expert"] in ("code", "math", "prose")
        assert 1 / 3 < answer["share"] <= 1


def test_the_terminal_ends_with_the_page_and_what_to_type(
    found: PipelineResult, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_quickstart(found, {"model": str(source)})
    said = capsys.readouterr().out
    assert "before: expert 0" in said
    assert "after: code" in said
    assert "The conversion kept the function" in said
    assert (found.out / "page/index.html").resolve().as_uri() in said
    assert f"generate {found.out / 'named/model'} --prompt 'def read_lines(path):'" in said
    assert said.index("What was learned") < said.index("The page") < said.index("What to type next")


def test_it_is_done_once(found: PipelineResult, source: Path) -> None:
    assert not any(record["done"] for record in go(source, found.out).stages.values())


def test_a_model_of_another_family_becomes_generic(tmp_path: Path) -> None:
    run = go(zoo.folder("gpt2"), tmp_path / "run", changes=[*CHANGES, "defaults.data.length=48"])
    assert result(run, "moe")["target"] == "generic"
    assert len(lessons.answers(run.stages)) == 3


def test_a_gguf_file_is_imported_first(tmp_path: Path) -> None:
    from tests.surgery.test_imports import _gguf

    _gguf(zoo.build("llama", max_position_embeddings=512), tmp_path / "small.gguf")
    run = go(tmp_path / "small.gguf", tmp_path / "run")
    assert list(run.stages) == ["model", *STAGES]
    assert result(run, "model")["architecture"] == "LlamaForCausalLM"
    assert (
        len(load_tokenizer(run.out / "model")) == 300
    )  # transformers' reader adds a token that the model does not have
    assert result(run, "moe")["verification"]["passed"]


def test_too_large_a_model_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: 10**8)
    with pytest.raises(RequestError, match="of memory, and 100 MB are free") as refused:
        go(source, tmp_path / "run")
    assert refused.value.field == "model"
    assert not (tmp_path / "run").exists()


def test_a_model_that_must_be_imported_names_the_command(tmp_path: Path) -> None:
    model = save(zoo.build("llama"), tmp_path / "fp8")
    config = read_json(model / "config.json") | {"quantization_config": {"quant_method": "fp8"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError) as refused:
        go(model, tmp_path / "run")
    assert f"`smolmoe import {model} FOLDER --dequantise`" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        (None, "runs/quickstart"),
        ("HuggingFaceTB/SmolLM2-135M", "runs/quickstart-smollm2-135m"),
        ("a folder/My Model.Q8_0.gguf", "runs/quickstart-my-model.q8_0"),
    ],
)
def test_each_model_has_its_own_folder(model: str | None, folder: str) -> None:
    assert default_folder(model) == Path(folder)
