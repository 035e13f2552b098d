"""Which torch `make setup` picks: no CUDA libraries on a machine that has no use for them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "install_torch.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on a Linux machine without a GPU."""
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    return module


def pip_that_finds(version: str, requires: list[str], returncode: int = 0) -> Any:
    report = json.dumps({"install": [{"metadata": {"version": version, "requires_dist": requires}}]})

    def run(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
        assert "--dry-run" in arguments
        return subprocess.CompletedProcess(arguments, returncode, report if returncode == 0 else "", "")

    return run


CUDA = ["filelock", 'nvidia-cudnn-cu13==9.20.0.48; platform_system == "Linux"']


@pytest.mark.parametrize(("version", "requires"), [("2.13.0+cpu", CUDA), ("2.13.0", ["filelock", "sympy>=1.13.3"])])
def test_a_cpu_build_that_pip_finds_is_taken(script: ModuleType, version: str, requires: list[str]) -> None:
    assert script.candidates("torch==2.13.0", pip_that_finds(version, requires)) == [["torch==2.13.0"]]


@pytest.mark.parametrize("returncode", [0, 1])
@pytest.mark.parametrize(("asked", "of_the_index"), [("torch==2.13.0", "torch==2.13.0+cpu"), ("torch", "torch")])
def test_else_the_official_cpu_index_is_asked_first(
    script: ModuleType, asked: str, of_the_index: str, returncode: int
) -> None:
    first, *rest = script.candidates(asked, pip_that_finds("2.13.0", CUDA, returncode))
    assert first[0] == of_the_index
    assert script.CPU_INDEX in first
    assert rest == [[asked]]


@pytest.mark.parametrize(("system", "gpu"), [("Linux", True), ("Darwin", False)])
def test_a_gpu_or_a_mac_gets_the_plain_build(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, gpu: bool
) -> None:
    monkeypatch.setattr(script.platform, "system", lambda: system)
    monkeypatch.setattr(script, "has_gpu", lambda: gpu)
    assert script.candidates("torch==2.13.0", pip_that_finds("2.13.0", CUDA)) == [["torch==2.13.0"]]


@pytest.mark.parametrize(
    ("version", "enough"), [("2.12.1", False), ("2.13.0", True), ("2.13.0+cpu", True), ("2.13.1", False)]
)
def test_only_the_locked_torch_counts_as_installed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str, enough: bool
) -> None:
    monkeypatch.setattr(script.importlib.metadata, "version", lambda _: version)
    assert script.installed("torch==2.13.0") is enough
    assert not script.installed(script.wanted("newest"))


def test_the_version_is_the_one_in_the_lock(script: ModuleType) -> None:
    assert script.wanted(None) in script.LOCK.read_text(encoding="utf-8").splitlines()
    assert script.wanted("2.12.0") == "torch==2.12.0"
