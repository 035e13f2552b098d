"""extract, prune, merge-experts and add-expert as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tests.helpers import dense_llama, random_moe, save
from typer.testing import CliRunner, Result

from smolmoe.cli import add_expert, extract, merge_experts, prune
from smolmoe.data.text import Document, write_documents
from smolmoe.errors import OutputError, RequestError, SourceError


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (extract, prune, merge_experts, add_expert):
        command.COMMAND.add_to(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(random_moe("mixtral"), tmp_path_factory.mktemp("cli") / "moe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"expert_names": ["code", "math", None, "chat"]}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    texts = {"code": "def add(a, b):\n    return a + b\n", "prose": "Three and four is seven. "}
    write_documents(path, [Document(text * (2 + i), domain) for i in range(2) for domain, text in texts.items()])
    return path


def test_extract_by_name(moe: Path, tmp_path: Path) -> None:
    text = printed("extract", moe, tmp_path / "out", "--expert", "math")
    assert "LlamaForCausalLM, expert 1 (math)" in text
    assert "claim       exact. The expert's gate is constant (gates sum to 1)." in text
    assert "against the MoE restricted to expert 1" in text
    assert "3 of 3 checks hold." in text
    two = json.loads(printed("extract", moe, tmp_path / "two", "--expert", "code", "--expert", "2", "--json"))
    assert two["architecture"] == "MixtralForCausalLM"
    assert two["experts"] == "experts 0 (code), 2"
    assert two["measured"]["passed"] is True


def test_fewer_experts_with_the_loss_of_each_domain(moe: Path, tmp_path: Path, data: Path) -> None:
    text = printed("prune", moe, tmp_path / "pruned", "--experts", 2, "--data", data)
    assert "MixtralForCausalLM, experts" in text
    assert "Held-out loss, nats per token" in text
    assert "prose" in text
    assert "(95%, over documents)" in text
    merged = json.loads(printed("merge-experts", moe, tmp_path / "merged", "--groups", "code,math", "--json"))
    assert merged["claim"]["kind"] == "none"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["expert_names"] == ["code+math", None, "chat"]


def test_one_more(moe: Path, tmp_path: Path) -> None:
    text = printed("add-expert", moe, tmp_path / "more", "--from", "chat", "--name", "law")
    assert "SmolMoeForCausalLM, expert 4 (law), a copy of expert 3 (chat)" in text
    assert "claim       exact. Without a selection bias" in text


def test_dry_run_writes_nothing_and_overwrite_replaces(moe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = printed("extract", moe, out, "--expert", 0, "--dry-run")
    assert text.startswith(f"would write {out}: LlamaForCausalLM")
    assert "Planned in" in text
    assert not out.exists()
    printed("extract", moe, out, "--expert", 0)
    assert isinstance(run("extract", moe, out, "--expert", 1).exception, OutputError)
    printed("extract", moe, out, "--expert", 1, "--overwrite")
    assert json.loads((out / "smolmoe.json").read_text())["experts"]["chosen"] == [1]


def test_what_is_not_there_is_named(moe: Path, tmp_path: Path) -> None:
    error = run("extract", moe, tmp_path / "out", "--expert", "law").exception
    assert isinstance(error, RequestError)
    assert "the names code, math, chat and experts 0 to 3" in str(error)
    dense = save(dense_llama(), tmp_path / "dense")
    assert isinstance(run("prune", dense, tmp_path / "out", "--keep", 0).exception, SourceError)


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = "import sys, smolmoe.cli; print(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
