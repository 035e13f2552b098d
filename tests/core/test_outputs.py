"""Every command that writes: a place that cannot be written is refused before the work, and links as outputs stay."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import dense_llama, moe_of, save
from tests.core.test_files import another_process, small_files

from smolmoe import probe
from smolmoe.alignment.pairs_run import make_pairs
from smolmoe.alignment.run import align
from smolmoe.core.files import growing
from smolmoe.core.run_folder import begin_folder
from smolmoe.data.fetch import fetch
from smolmoe.data.prompts import read_corrections
from smolmoe.distillation.run import cache_teacher, forecast_cache
from smolmoe.errors import OutputError
from smolmoe.evaluation.compare.run import compare
from smolmoe.evaluation.correction import score_checkpoint
from smolmoe.hub.push import push
from smolmoe.recipe import parse
from smolmoe.recipe.files import copy_recipe
from smolmoe.recipe.pairs import PairsRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.reports.run import report
from smolmoe.selection.run import run_select
from smolmoe.surgery.experts.run import add_expert, extract, merge_experts, prune
from smolmoe.surgery.export.run import export
from smolmoe.surgery.run import upcycle
from smolmoe.teacher.job import plan, teach
from smolmoe.training.run import train


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense`, `moe`, `rows.jsonl`."""
    folder = tmp_path_factory.mktemp("inputs")
    save(dense_llama(), folder / "dense")
    save(moe_of(dense_llama()), folder / "moe")
    rows = [
        {"text": f"Number {i} " * 9, "domain": "ab"[i % 2], "src": f"He go {i}", "tgt": f"He {i}"} for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _select(inputs: Path, out: Path) -> object:
    values = {"sources": [{"path": str(inputs / "rows.jsonl")}], "budget": 10, "unit": "rows", "score": "random"}
    return run_select(parse(SelectRecipe, values | {"tokenizer": str(inputs / "dense")}), out)


def _pairs(inputs: Path, out: Path) -> object:
    values = {"model": str(inputs / "dense"), "data": str(inputs / "rows.jsonl"), "out": out, "prompts": 4}
    return make_pairs(parse(PairsRecipe, values | {"max_new_tokens": 4}))


def _teach(inputs: Path, out: Path) -> TeachRecipe:
    values = {"prompts": inputs / "rows.jsonl", "prompt_column": "text", "out": out, "model": "m"}
    return parse(TeachRecipe, values | {"base_url": "http://127.0.0.1:9/v1"})


def _score(inputs: Path, out: Path) -> object:
    rows = read_corrections(
        str(inputs / "rows.jsonl"), source_column="src", target_column="tgt", references_column=None
    )
    return score_checkpoint(inputs / "dense", rows, out=out, max_new_tokens=4, batch_size=4)


Command = Callable[[Path, Path], object]


def _run_folder(inputs: Path, out: Path) -> None:
    with growing(out):  # as both commands do
        begin_folder(out, {"a": 1}, what="a run", record="settings.json", made=())
        (out / "start").mkdir()


FOLDERS: dict[str, Command] = {
    "upcycle": lambda inputs, out: upcycle(inputs / "dense", out, verify="none"),
    "upcycle --dry-run": lambda inputs, out: upcycle(inputs / "dense", out, dry_run=True),
    "extract": lambda inputs, out: extract(inputs / "moe", out, [0]),
    "prune": lambda inputs, out: prune(inputs / "moe", out, keep=2),
    "prune --dry-run": lambda inputs, out: prune(inputs / "moe", out, keep=2, dry_run=True),
    "merge-experts": lambda inputs, out: merge_experts(inputs / "moe", out, groups=[[0, 1]]),
    "add-expert": lambda inputs, out: add_expert(inputs / "moe", out, dense=inputs / "dense"),
    "export": lambda inputs, out: export(inputs / "moe", out, "qwen2_moe"),
    "push": lambda inputs, out: push(inputs / "moe", f"file:{out}"),
    "push --dry-run": lambda inputs, out: push(inputs / "moe", f"file:{out}", dry_run=True),
    "probe": lambda inputs, out: probe(inputs / "moe", inputs / "rows.jsonl", out=out),
    "compare": lambda inputs, out: compare(
        {"a": str(inputs / "dense"), "b": str(inputs / "moe")}, inputs / "rows.jsonl", speed=False, out=out
    ),
    "data select": _select,
    "data fetch": lambda inputs, out: fetch("tinystories", out),
    "data teach": lambda inputs, out: teach(_teach(inputs, out)),
    "data teach --dry-run": lambda inputs, out: plan(_teach(inputs, out)),
    "distill cache": lambda inputs, out: cache_teacher(inputs / "dense", inputs / "rows.jsonl", out),
    "distill cache --dry-run": lambda inputs, out: forecast_cache(inputs / "dense", inputs / "rows.jsonl", out),
    "align pairs": _pairs,
    "correct score": _score,
    "sweep": _run_folder,
}
FILES: dict[str, Command] = {
    "export --to gguf": lambda inputs, out: export(inputs / "moe", out, "gguf"),
    "report": lambda inputs, out: report([inputs / "moe"], out),
    "recipes copy": lambda inputs, out: copy_recipe("embedded", out),
}


@pytest.mark.parametrize("command", [*FOLDERS, *FILES])
@pytest.mark.parametrize(
    ("name", "says"),
    [("file.txt/out", r"file\.txt: Not a dir"), ("x" * 256, "name too long"), ("/proc/out", "No such")],
)
def test_a_bad_place_is_refused_before_the_work(
    command: str, name: str, says: str, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(OutputError, match=says) as caught:
        (FOLDERS | FILES)[command](inputs, tmp_path / name)
    assert caught.value.field == "out"
    assert str(caught.value.value).startswith(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("command", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_said_plainly_before_the_work(
    command: str, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"is a file|something other than|exists") as caught:
        FOLDERS[command](inputs, out)
    assert "(File exists)" not in str(caught.value)
    assert out.read_text() == "mine"


def test_training_and_alignment_say_that_out_is_a_file(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    data = {"train": [str(inputs / "rows.jsonl")]}
    for begin in (
        lambda: train({"data": {"sources": [{"preset": "embedded"}]}, "out": str(out), "model": {"path": "x"}}),
        lambda: align({"method": "sft", "model": {"path": "x"}, "data": data, "out": str(out)}),
    ):
        with pytest.raises(OutputError, match="is a file, not a folder"):
            begin()


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_another_process_writes_is_refused_at_the_start(
    command: str, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with another_process(out), pytest.raises(OutputError, match="another process is writing there"):
        FOLDERS[command](inputs, out)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == []


@pytest.mark.parametrize("command", ["compare", "data select", "align pairs", "distill cache", "sweep"])
def test_a_link_stays_and_what_it_leads_to_is_written(command: str, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/real")
    FOLDERS[command](inputs, tmp_path / "out")
    assert os.readlink(tmp_path / "out") == "disk/real"
    assert len(os.listdir(tmp_path / "disk" / "real")) > 1
    assert (os.listdir(tmp_path / "disk"), sorted(os.listdir(tmp_path))) == (["real"], ["disk", "out"])


@pytest.mark.parametrize("command", ["compare", "data select", "upcycle"])
def test_a_full_disk_leaves_nothing(command: str, inputs: Path, tmp_path: Path) -> None:
    with small_files(100), pytest.raises(OutputError, match=r"File too large") as caught:
        FOLDERS[command](inputs, tmp_path / "new" / "out")
    assert str(caught.value.value).startswith(str(tmp_path / "new" / "out"))
    assert os.listdir(tmp_path) == []


def test_an_export_replaces_no_json_of_others(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "mine"}')
    with pytest.raises(OutputError, match=r"config\.json.*was not written by an export"):
        export(inputs / "moe", tmp_path / "config.gguf", "gguf", overwrite=True)
    with pytest.raises(OutputError, match="exists"):
        export(inputs / "moe", tmp_path / "config.gguf", "gguf")


def test_a_report_replaces_none_of_its_sources(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{}")
    (tmp_path / "link").symlink_to("compare.json")
    with pytest.raises(OutputError, match="is an input of the report"):
        report([tmp_path / "compare.json"], tmp_path / "link", overwrite=True)
