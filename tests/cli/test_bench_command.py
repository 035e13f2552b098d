"""`smolmoe bench` as a user calls it: two models in turns, a table, JSON, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import dense_llama, moe_of, save
from typer.testing import CliRunner

from smolmoe.cli import app
from smolmoe.errors import RequestError, SmolmoeError, SourceError
from smolmoe.verbs.measure import bench


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save(moe_of(dense_llama()), folder / "moe"), save(dense_llama(), folder / "dense")


@pytest.mark.slow
def test_two_models_in_turns(models: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--batch-sizes", "1,2", "--prompt-tokens", 6, "--new-tokens", 3, "--rounds", 2, "--threads", 1]
    out = tmp_path / "bench.json"
    command = ["bench", models[0], "--against", models[1], *options, "--out", out]
    run = CliRunner().invoke(app, [*map(str, command)])
    assert run.exit_code == 0, run.output
    assert "only the chosen" in run.stdout
    assert "moe divided by dense" in run.stdout
    assert "4, top-2, by smolmoe" in run.stdout
    found = json.loads(out.read_text())
    assert (found["schema_version"], found["kind"]) == (1, "bench")
    moe, dense = found["models"]
    expert = 3 * 32 * 48
    assert dense["parameters"]["total"] == dense["parameters"]["active"]
    assert moe["parameters"]["total"] - moe["parameters"]["active"] == 2 * 2 * expert
    assert moe["parameters"]["total"] - moe["parameters"]["total_without_embeddings"] == 300 * 32
    router = 2 * 4 * 32
    assert moe["bytes"]["active"] - dense["bytes"]["active"] == 4 * (2 * expert + router)
    assert moe["flops"]["experts"]["only_chosen"] is True
    assert dense["flops"]["experts"] is None
    assert moe["flops"]["decode"]["total"] > dense["flops"]["decode"]["total"]
    assert [batch["batch_size"] for batch in moe["speed"]] == [1, 2]
    for batch in (*moe["speed"], *dense["speed"]):
        assert batch["decode_tokens_per_second"] == pytest.approx(batch["batch_size"] / batch["token"]["median"])
        assert batch["peak_bytes"] > moe["process_bytes"] > 10**7
    assert [ratio["batch_size"] for ratio in found["ratios"]] == [1, 2]
    ratio = found["ratios"][0]
    assert ratio["decode"]["low"] <= ratio["decode"]["median"] <= ratio["decode"]["high"]
    of_bytes = moe["bytes"]["active"] / dense["bytes"]["active"]
    assert ratio["decode_for_bytes"]["median"] == pytest.approx(ratio["decode"]["median"] * of_bytes)


def test_what_a_model_cannot_do_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="experts implementation of this model cannot be chosen") as caught:
        bench(models[1], experts="eager")
    assert caught.value.field == "experts"
    with pytest.raises(SourceError, match="no such model folder") as missing:
        bench(models[1], against=tmp_path / "nowhere")
    assert missing.value.field == "against"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 0),
        ("threads", 0),
        ("new_tokens", 1),
        ("batch_sizes", (4, 0)),
        ("batch_sizes", ()),
        ("dtype", "int8"),
    ],
)
def test_what_no_model_could_do_is_refused_before_one_is_loaded(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        bench("nowhere", **{field: value})
    assert caught.value.field.partition("[")[0] == field
    assert caught.value.fix


@pytest.mark.parametrize("options", [["--batch-sizes", "1,x"], ["--out", "nowhere/bench.json"]])
def test_bad_options_are_a_short_message(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", "nowhere", *options])
    assert isinstance(result.exception, SmolmoeError)
    assert result.exception.field == options[0].removeprefix("--").replace("-", "_")
