"""An empty argument is refused before it is taken for the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import zoo
from tests.cli.calls import Call

from smolmoe import upcycle
from smolmoe.errors import RequestError


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["upcycle", "SRC", "", "--verify", "none"], "argument"),
        (["upcycle", "", "out"], "argument"),
        (["bench", "SRC", "--out", ""], "out"),
        (["bench", "SRC", "--out="], "out"),
        (["extract", "SRC", "", "--expert", "0"], "argument"),
    ],
)
def test_an_empty_argument_is_refused(
    arguments: list[str], named: str, smolmoe: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(zoo.folder("llama"))
    done = smolmoe(*(source if one == "SRC" else one for one in arguments))
    assert done.code == 2
    assert f"{named} = '': is empty." in done.err
    assert not any(tmp_path.iterdir())


def test_an_empty_prompt_is_one(smolmoe: Call) -> None:
    done = smolmoe("generate", zoo.folder("llama"), "--prompt", "", "--max-new-tokens", 1)
    assert "is empty" not in done.err


def test_an_empty_place_is_refused_in_python_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="empty"):
        upcycle(zoo.folder("llama"), "", verify="none")
    assert not any(tmp_path.iterdir())
