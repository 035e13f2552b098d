"""The wheel: all that the package opens is in it, and it runs where the checkout is not."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "smolmoe"


def output(*command: str | Path, folder: Path) -> str:
    """What a command writes; it knows nothing of this checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    output(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, folder=ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with this one's libraries, but not with this checkout."""
    venv = tmp_path_factory.mktemp("venv")
    output(sys.executable, "-m", "venv", "--without-pip", venv, folder=venv)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(output(scripts / "python", "-c", code, folder=venv).strip())
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-index", "--no-deps", "--quiet")
    output(*pip, wheel, folder=venv)
    # A folder of a .pth file: the .pth files in it, such as the one of an editable smolmoe, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("smolmoe/") for name in archive.namelist() if name.startswith("smolmoe/")}
    assert names == files(PACKAGE)
    assert {"moe/kernels/few_tokens.c", "reports/templates/page.css", "recipe/shipped/quickstart.yaml"} < names


def test_its_metadata_is_what_people_look_for(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (info,) = tmp_path.glob("*.dist-info")
    found: Distribution = PathDistribution(info)
    assert found.metadata["Requires-Python"] == ">=3.11"
    assert found.metadata["License-Expression"] == "MIT"
    assert found.metadata["Description-Content-Type"] == "text/markdown"
    text = found.metadata.get_payload()
    assert isinstance(text, str)
    assert text.startswith((ROOT / "README.md").read_text(encoding="utf-8")[:200])
    assert {"align", "eval", "gguf", "teach", "dev"} == set(found.metadata.get_all("Provides-Extra") or [])
    assert [entry.value for entry in found.entry_points] == ["smolmoe.cli:main"]
    assert (info / "licenses" / "LICENSE").is_file()


@pytest.mark.slow
def test_it_runs_without_the_checkout(scripts: Path, tmp_path: Path) -> None:
    where = output(scripts / "python", "-c", "import smolmoe; print(smolmoe.__file__)", folder=tmp_path).strip()
    assert Path(where).is_relative_to(scripts.parent)
    assert output(scripts / "smolmoe", "--version", folder=tmp_path).startswith("smolmoe ")
    assert "quickstart-model" in output(scripts / "smolmoe", "recipes", folder=tmp_path)
    output(scripts / "smolmoe", "recipes", "copy", "quickstart", folder=tmp_path)
    assert (tmp_path / "quickstart.yaml").is_file()


@pytest.mark.slow
def test_its_quickstart_runs(scripts: Path, tmp_path: Path) -> None:
    said = output(scripts / "smolmoe", "quickstart", "--minutes", "0.02", folder=tmp_path)
    assert (tmp_path / "runs/quickstart/page/index.html").is_file()
    assert "What to type next" in said
    assert f"  {scripts / 'smolmoe'} quickstart --model" in said  # not on PATH, and not below the current folder


@pytest.mark.slow
def test_its_kernel_compiles(scripts: Path, tmp_path: Path) -> None:
    code = "from smolmoe.moe.kernels import native; print(native.SOURCE, native._library() is not None)"
    assert output(scripts / "python", "-c", code, folder=tmp_path).split() == ["few_tokens.c", "True"]
