"""export as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tests.helpers import random_moe, save
from typer.testing import CliRunner, Result

from smolmoe.cli import export
from smolmoe.errors import RequestError, TargetError


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    export.COMMAND.add_to(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_moe("mixtral"), tmp_path_factory.mktemp("cli") / "moe")


def test_another_class(moe: Path, tmp_path: Path) -> None:
    result = run(moe, tmp_path / "out", "--to", "granitemoeshared")
    assert result.exit_code == 0, result.exception
    text = result.stdout
    assert text.startswith(f"{tmp_path / 'out'}: GraniteMoeSharedForCausalLM, from a mixtral")
    assert "claim       exact. The same router rows choose the same experts" in text
    assert "padded left, right" in text
    assert "with KV cache" in text
    assert "10 of 10 checks hold." in text


def test_json_and_dry_run(moe: Path, tmp_path: Path) -> None:
    planned = json.loads(run(moe, tmp_path / "out", "--to", "gguf", "--quant", "q8_0", "--dry-run", "--json").stdout)
    assert (planned["kind"], planned["architecture"], planned["quant"]) == ("gguf-export", "llama", "q8_0")
    text = run(moe, tmp_path / "out", "--to", "generic", "--dry-run").stdout
    assert text.startswith(f"would write {tmp_path / 'out'}: SmolMoeForCausalLM")
    assert "Planned in" in text
    assert not list(tmp_path.iterdir())


def test_what_does_not_work(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(run(moe, tmp_path / "out", "--to", "glm4_moe").exception, TargetError)
    monkeypatch.delenv("SMOLMOE_LLAMA_CPP", raising=False)
    without = run(moe, tmp_path / "out", "--to", "gguf").exception
    assert isinstance(without, RequestError)
    assert without.field == "llama_cpp"
