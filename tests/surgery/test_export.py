"""export: another class on the disk, whole and verified, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import dense_llama, random_moe, save, tiny_tokenizer

from smolmoe.errors import OutputError, RequestError, SourceError, TargetError
from smolmoe.moe.loading import load_tokenizer
from smolmoe.surgery.export.run import export


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(random_moe("mixtral"), tmp_path_factory.mktemp("export") / "moe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"expert_names": ["code", "math", None, "chat"]}))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    return folder


def test_everything_that_a_model_folder_has(moe: Path, tmp_path: Path) -> None:
    result: Any = export(moe, tmp_path / "out", "qwen2_moe")
    assert (result.source, result.target, result.architecture) == ("mixtral", "qwen2_moe", "Qwen2MoeForCausalLM")
    assert result.verification.passed
    assert {"logits", "padding", "cache", "greedy tokens", "control"} <= {c.name for c in result.verification.checks}
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["expert_names"] == ["code", "math", None, "chat"]
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"temperature": 0.5}
    text = "def add(a, b):\n    return a + b"
    assert load_tokenizer(tmp_path / "out")(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    provenance = json.loads((tmp_path / "out/smolmoe.json").read_text())
    assert provenance["stage"] == "export"
    assert provenance["experts"]["claim"]["kind"] == "exact"
    assert provenance["experts"]["measured"]["passed"] is True
    assert provenance["sources"]["moe"]["sha256"]
    printed = result.to_json()
    assert (printed["schema_version"], printed["kind"]) == (1, "native-export")
    json.dumps(printed)


def test_a_dry_run_writes_nothing(moe: Path, tmp_path: Path) -> None:
    planned: Any = export(moe, tmp_path / "out", "granitemoeshared", dry_run=True)
    assert planned.verification is None
    assert 0 < planned.nbytes < (moe / "model.safetensors").stat().st_size  # which has a header, too
    gguf: Any = export(moe, tmp_path / "out", "gguf", quant="f16", dry_run=True)
    assert (gguf.architecture, gguf.quant, gguf.verified) == ("llama", "f16", False)
    assert list(tmp_path.iterdir()) == []


def test_bad_input(moe: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("")
    with pytest.raises(OutputError, match="exists"):
        export(moe, tmp_path / "there", "generic")
    with pytest.raises(OutputError, match="lies inside the source"):
        export(moe, moe / "inside", "generic")
    with pytest.raises(RequestError, match="applies only to GGUF files"):
        export(moe, tmp_path / "out", "generic", quant="f16")
    with pytest.raises(TargetError, match="no such class"):
        export(moe, tmp_path / "out", "llama")
    with pytest.raises(SourceError, match="is a dense model"):
        export(save(dense_llama(), tmp_path / "dense"), tmp_path / "out", "generic")
    assert not (tmp_path / "out").exists()
