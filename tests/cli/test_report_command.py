"""report and push as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tests.helpers import dense_llama, random_moe, save
from tests.training.runs import recipe
from typer.testing import CliRunner, Result

from smolmoe.cli import push, report
from smolmoe.errors import DataError, OutputError, RequestError
from smolmoe.surgery.run import upcycle
from smolmoe.training.run import train


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    report.COMMAND.add_to(app)
    push.COMMAND.add_to(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an upcycling and a training really write."""
    root = tmp_path_factory.mktemp("work")
    dense = save(dense_llama(), root / "dense")
    upcycle(dense, root / "moe", experts=4, top_k=2)
    train(recipe(root, root / "moe"))
    return root


def test_a_report_of_what_was_really_written(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    text = printed("report", folder, "-o", page)
    assert "kB, 6 of 13 sections" in text
    assert "4 experts, top-2. moe: a MixtralForCausalLM. It computes what its dense model computes: verified" in text
    assert "Verdict        Not compared with a dense model." in text
    assert f"smolmoe probe {folder}/moe --data TAGGED.jsonl --out DIR" in " ".join(text.split())
    html = page.read_text()
    for name in ("claim", "losses", "training", "balance", "provenance", "missing"):
        assert f'<section id="{name}">' in html
    assert 'aria-label="Load balance and active experts over training, load balance.' in html


def test_a_summary_on_standard_output_is_nothing_else(folder: Path) -> None:
    text = printed("report", folder, "--markdown", "-")
    assert text.startswith("<!-- Written by smolmoe report. -->\n\n## ")
    assert "Missing" not in text


def test_as_json(folder: Path, tmp_path: Path) -> None:
    found = json.loads(printed("report", folder / "run", folder / "moe", "-o", tmp_path / "report.html", "--json"))
    assert (found["schema_version"], found["kind"]) == (1, "report")
    assert found["bytes"] == (tmp_path / "report.html").stat().st_size
    assert found["found"]["models"] == ["run", "moe"]
    assert found["found"]["trainings"] == ["run"]
    assert found["missing"]["Comparison"].startswith("smolmoe compare")
    assert set(found["answers"]) == {"Verdict", "What was made", "What it costs"}


def test_a_trained_model_has_its_card(folder: Path) -> None:
    summary = json.loads((folder / "run" / "summary.json").read_text())
    text = (folder / "run" / "model" / "README.md").read_text()
    assert f"| this model | {summary['held_out']['loss']:.4f} |" in text
    assert "| before this training |" in text
    assert f"| active per token | {summary['parameters']['active']:,} |" in text


def test_errors(folder: Path, tmp_path: Path) -> None:
    assert isinstance(run("report", tmp_path, "-o", tmp_path / "a.html").exception, DataError)
    (tmp_path / "mine.html").write_text("mine")
    assert isinstance(run("report", folder, "-o", tmp_path / "mine.html").exception, OutputError)
    assert isinstance(run("report", folder).exception, RequestError)  # no output is named
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert isinstance(run("report", folder, "--png", tmp_path / "mine.png").exception, OutputError)


def test_push_to_a_folder(tmp_path: Path) -> None:
    model = save(random_moe("mixtral"), tmp_path / "moe")
    (model / "optimizer.pt").write_bytes(b"")
    text = printed("push", model, f"file:{tmp_path}/out", "--dry-run")
    assert "files, " in text
    assert ", would be sent" in text
    assert "not sent: optimizer.pt (training state" in text
    assert not (tmp_path / "out").exists()
    found = json.loads(printed("push", model, f"file:{tmp_path}/out", "--json"))
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert isinstance(run("push", model, f"file:{tmp_path}/out").exception, OutputError)
