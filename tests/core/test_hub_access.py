"""Without a network, every command that asks the hub says so at once, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests import zoo

from smolmoe import upcycle
from smolmoe.core.hub_access import why_not
from smolmoe.data.fetch import fetch
from smolmoe.data.sources import open_source
from smolmoe.errors import HubError
from smolmoe.hub.push import push
from smolmoe.moe.loading import find_tokenizer
from smolmoe.recipe.data import SourceRecipe

CALLS: dict[str, Callable[[Path], object]] = {
    "data fetch": lambda out: fetch("tinystories", out, rows=2),
    "a source of text": lambda out: list(open_source(SourceRecipe(path="nobody/no-such-data")).documents()),
    "a model": lambda out: upcycle("nobody/no-such-model", out),
    "a tokenizer": lambda out: find_tokenizer("nobody/no-such-tokenizer"),
    "push": lambda out: push(zoo.folder("llama"), "nobody/moe"),
}


@pytest.mark.parametrize("name", CALLS)
def test_offline_by_the_environment(name: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
        CALLS[name](tmp_path / "out")
    assert "Unset HF_HUB_OFFLINE" in str(caught.value.fix)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CALLS)
def test_a_hub_that_does_not_answer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's clients let through what their HTTP library raises, which is no OSError in newer ones."""
    import datasets
    import huggingface_hub
    import transformers

    httpx = pytest.importorskip("httpx2" if find_spec("httpx2") else "httpx")

    def refused(*args: object, **options: object) -> None:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refused)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    monkeypatch.setattr(datasets, "load_dataset_builder", refused)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refused)
    with pytest.raises(HubError, match=r"https://huggingface\.co cannot be reached \(ConnectError: \[Errno 111\]"):
        CALLS[name](tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_reason_is_not_taken_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    fix = "Check the name; for a private or gated one log in with `hf auth login`."
    assert why_not(ValueError("401.\nmore")) == ("ValueError: 401", fix)
    problem = RuntimeError("outer")
    problem.__cause__ = TimeoutError("no answer")
    assert "cannot be reached" in why_not(problem)[0]


def test_the_network_is_found_behind_an_error_raised_while_handling_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    problem = RuntimeError("outer")
    problem.__context__ = ConnectionError("refused")
    assert "cannot be reached" in why_not(problem)[0]


def test_the_endpoint_and_the_setting_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert "https://mirror.example cannot be reached" in why_not(TimeoutError("no answer"))[0]
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "true")
    assert why_not(TimeoutError("no answer"))[1] == "Unset TRANSFORMERS_OFFLINE."
