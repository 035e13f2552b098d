"""Every folder that is written has the keys that older readers know, which change nothing for transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import zoo
from tests.alignment import runs as alignments
from tests.helpers import save
from tests.surgery.test_imports import _composite, _quantised
from tests.training import runs as trainings

from smolmoe import align, export, import_model, train, upcycle
from smolmoe.core.config_writer import with_older_keys
from smolmoe.moe.loading import load_config
from smolmoe.surgery.experts.run import extract, merge_experts, prune

MOE = "mixtral"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MoE whose experts differ."""
    work = tmp_path_factory.mktemp("keys")
    upcycle(zoo.folder("llama"), work / MOE, experts=4, top_k=2, diversify="noise", verify="none")
    return work


def _trained(work: Path, out: Path) -> Path:
    values = trainings.recipe(out.parent, work / MOE, trainer=trainings.trainer(max_steps=1))
    return train(values).model


def _aligned(work: Path, out: Path) -> Path:
    return align(alignments.recipe(out.parent, work / MOE, "sft", trainer=alignments.trainer(max_steps=1))).model


def _text_model(work: Path, out: Path) -> Path:
    return import_model(save(_composite("smolvlm"), out.parent / "whole"), out, text_model=True).out


def _dequantised(work: Path, out: Path) -> Path:
    _quantised(zoo.folder("llama"), out.parent / "fp8")
    return import_model(out.parent / "fp8", out, dequantise=True).out


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "upcycle": lambda work, out: upcycle(zoo.folder("llama"), out, experts=4, verify="none"),
    "prune": lambda work, out: prune(work / MOE, out, keep=["0", "1"]),
    "extract": lambda work, out: extract(work / MOE, out, ["1"]),
    "extract two": lambda work, out: extract(work / MOE, out, ["1", "2"]),
    "merge": lambda work, out: merge_experts(work / MOE, out, groups=[["0", "1"], ["2", "3"]]),
    "export": lambda work, out: export(work / MOE, out, "granitemoe"),
    "train": _trained,
    "align": _aligned,
    "import a text model": _text_model,
    "import fp8": _dequantised,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_save_has_the_older_keys(name: str, work: Path, tmp_path: Path) -> None:
    written = WRITERS[name](work, tmp_path / "out")
    folder = written if isinstance(written, Path) else tmp_path / "out"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None
    assert load_config(folder).rope_parameters == config["rope_parameters"]


def test_they_change_nothing_for_transformers(tmp_path: Path) -> None:
    """Rotary scaling stays what `rope_parameters` says."""
    plain = json.loads((zoo.folder("llama_rope3") / "config.json").read_text(encoding="utf-8"))
    for name, config in (("plain", plain), ("older", with_older_keys(plain))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = [load_config(tmp_path / name).rope_parameters for name in ("plain", "older")]
    assert found[0] == found[1]
    assert found[0]["rope_type"] == "llama3"
