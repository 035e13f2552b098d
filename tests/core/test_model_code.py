"""Code that smolmoe did not write is never passed on: no file of Python, and no setting that names one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import zoo
from tests.helpers import tiny_tokenizer
from tests.training.runs import recipe

from smolmoe import upcycle
from smolmoe.core.model_code import AUTO_MAP, CODE_FILE, OURS, without_code
from smolmoe.hub.push import push
from smolmoe.surgery.experts.run import add_expert, extract, merge_experts, prune
from smolmoe.surgery.export.run import export
from smolmoe.training.run import train

EVIL = "import os  # not what smolmoe wrote\n"
ELSEWHERE = {"AutoConfig": "someone/else--configuration_x.Config", "AutoModelForCausalLM": "modeling_x.Model"}


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def poison(folder: Path, code: str = EVIL) -> Path:
    """Code in every place that a model folder has for it."""
    (folder / CODE_FILE).write_text(code)
    for name in ("modeling_x.py", "tokenizer_x.py", "tokenizer.model.py", "generation_config.json.py"):
        (folder / name).write_text(EVIL)
    (folder / "tokenizer_x").mkdir()
    (folder / "tokenizer_x" / "x.py").write_text(EVIL)
    edit(folder / "config.json", auto_map=ELSEWHERE, custom_pipelines={"x": {"impl": "x.X"}})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenizer_x.X", None]})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a generic and a native MoE of it, each with code that is not ours."""
    work = tmp_path_factory.mktemp("code")
    shutil.copytree(zoo.folder("llama"), work / "dense")
    for target in ("generic", "mixtral"):
        upcycle(work / "dense", work / target, experts=4, top_k=2, target=target, verify="none")
    for name in ("dense", "generic", "mixtral"):
        poison(work / name)
    return work


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "upcycle": lambda work, out: upcycle(work / "dense", out, experts=4, top_k=2, verify="none"),
    "upcycle, generic": lambda work, out: upcycle(work / "dense", out, target="generic", verify="none"),
    "prune": lambda work, out: prune(work / "generic", out, keep=["0", "1"]),
    "prune, native": lambda work, out: prune(work / "mixtral", out, keep=["0", "1"]),
    "extract": lambda work, out: extract(work / "generic", out, ["1"]),
    "merge": lambda work, out: merge_experts(work / "generic", out, groups=[["0", "1"], ["2", "3"]]),
    "add": lambda work, out: add_expert(work / "generic", out, copy_of=0),
    "export": lambda work, out: export(work / "generic", out, to="granitemoeshared"),
    "push": lambda work, out: push(work / "generic", f"file:{out}"),
    "push, native": lambda work, out: push(work / "mixtral", f"file:{out}"),
}


def check(out: Path) -> None:
    code = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.py"))
    config = json.loads((out / "config.json").read_text())
    if config["model_type"] == "smolmoe":
        assert code == [CODE_FILE]
        assert config["auto_map"] == AUTO_MAP
    if CODE_FILE in code:
        assert code == [CODE_FILE]
        assert (out / CODE_FILE).read_bytes() == OURS.read_bytes()
    said = "".join(path.read_text() for path in out.glob("*.json"))
    assert not [word for word in ("someone/else", "modeling_x", "tokenizer_x", "x.X") if word in said]
    assert not (out / "tokenizer_x").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_passes_code_on(name: str, folders: Path, tmp_path: Path) -> None:
    COMMANDS[name](folders, tmp_path / "out")
    check(tmp_path / "out")


@pytest.mark.parametrize("name", ["generic", "mixtral"])
def test_training_passes_no_code_on(name: str, folders: Path, tmp_path: Path) -> None:
    values = recipe(tmp_path, folders / name)
    values["trainer"]["max_steps"] = 1
    train(values)
    check(tmp_path / "run" / "model")


def test_what_is_replaced_is_said(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = push(folders / "generic", f"file:{tmp_path / 'out'}", dry_run=True)
    assert set(found.replaced) == {"config.json", "tokenizer_config.json", CODE_FILE}
    assert {"modeling_x.py", "tokenizer_x.py", "tokenizer.model.py"} <= found.refused.keys()
    assert found.files[CODE_FILE] == len(OURS.read_bytes())
    prune(folders / "generic", tmp_path / "pruned", keep=["0", "1"])
    assert f"{folders / 'generic' / CODE_FILE} is not the code" in caplog.text


def test_our_own_is_kept_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upcycle(zoo.folder("llama"), tmp_path / "moe", experts=4, target="generic", verify="none")
    prune(tmp_path / "moe", tmp_path / "pruned", keep=["0", "1"])
    assert push(tmp_path / "pruned", f"file:{tmp_path / 'out'}").replaced == {}
    check(tmp_path / "out")
    assert "not the code" not in caplog.text


def test_settings_that_name_code_are_taken_out_at_any_depth() -> None:
    inner = {"model_type": "llama", "auto_map": ELSEWHERE}
    assert without_code({"model_type": "smolmoe", "auto_map": ELSEWHERE, "text_config": inner}) == {
        "model_type": "smolmoe",
        "auto_map": AUTO_MAP,
        "text_config": {"model_type": "llama"},
    }
    assert tiny_tokenizer().init_kwargs.get("auto_map") is None
