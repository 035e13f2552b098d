"""Damaged, foreign and absent checkpoints get a typed error that names the file and the fix."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import zoo
from tests.helpers import edit_tensors
from tests.surgery.test_request import plan

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.errors import CheckpointError, HubError, SourceError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A writable copy of a single-file checkpoint."""
    return Path(shutil.copytree(zoo.folder("llama"), tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same model in several files."""
    zoo.build("llama").save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    return tmp_path / "sharded"


def test_reads_single_and_sharded(model: Path, sharded: Path) -> None:
    one, many = open_checkpoint(model), open_checkpoint(sharded)
    assert len(many.files()) > 2
    assert one.tensors.keys() == many.tensors.keys()
    for name in one.tensors:
        assert torch.equal(one.read(name), many.read(name))
    whole = one.read("model.embed_tokens.weight")
    assert torch.equal(one.read("model.embed_tokens.weight", (3, 9)), whole[3:9])


def test_fingerprint_sees_every_byte(model: Path) -> None:
    before = fingerprint(open_checkpoint(model))
    assert fingerprint(open_checkpoint(model)) == before
    edit_tensors(model, lambda tensors: tensors["model.norm.weight"].add_(1e-6))
    assert fingerprint(open_checkpoint(model)) != before


def truncate(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def garble_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:20] = b"x" * 12
    path.write_bytes(data)


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def wrong_shape(path: Path) -> None:
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + length])
    header["model.norm.weight"]["shape"] = [31]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + path.read_bytes()[8 + length :])


@pytest.mark.parametrize("damage", [truncate, garble_header, long_header, wrong_shape])
def test_damaged_file(model: Path, damage: Callable[[Path], None]) -> None:
    damage(model / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    assert "model.safetensors" in str(caught.value)


def test_empty_file(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(model)


def test_missing_shard(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=victim.name):
        open_checkpoint(sharded)


def test_index_that_names_absent_tensors(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    first = next(iter(data["weight_map"].values()))
    data["weight_map"]["model.layers.9.mlp.up_proj.weight"] = first
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"model\.layers\.9\.mlp"):
        open_checkpoint(sharded)


def test_index_that_leaves_the_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="outside"):
        open_checkpoint(sharded)


def test_index_that_is_no_json(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="index"):
        open_checkpoint(sharded)


def test_pickled_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        open_checkpoint(model)


def test_no_weights_and_no_config(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(model)
    (model / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json"):
        open_checkpoint(model)


def test_config_that_is_no_json(model: Path) -> None:
    (model / "config.json").write_text("not json")
    with pytest.raises(SourceError, match="JSON"):
        open_checkpoint(model)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "nowhere"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(SourceError, match="no such model folder"):
        open_checkpoint(name)


def test_hub_without_network() -> None:
    """Offline, as in all tests: the message says so and how to use a local folder."""
    with pytest.raises(HubError) as caught:
        open_checkpoint("nobody/no-such-model")
    assert "download" in str(caught.value.fix)
    assert "folder" in str(caught.value.fix)


def test_hub_snapshot_is_read_like_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A download ends in a snapshot folder named after its commit; that commit is kept as the revision."""
    import huggingface_hub

    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    shutil.copytree(zoo.folder("llama"), snapshot)
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = open_checkpoint("a/b", revision="main")
    assert checkpoint.revision == "0123abc"
    assert (asked["repo"], asked["revision"]) == ("a/b", "main")


# -- sources that are readable and still not what can be upcycled -----------------------------------------------


def set_config(model: Path, **values: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def plan_of(model: Path) -> object:
    return plan(source=str(model))


def test_quantised_config(model: Path) -> None:
    set_config(model, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(SourceError, match="quantised"):
        plan_of(model)


def test_quantised_tensors(model: Path) -> None:
    edit_tensors(model, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.int8)}))
    with pytest.raises(SourceError, match="quantised"):
        plan_of(model)


def test_missing_and_foreign_tensors(model: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(model, lambda t: t.update({"model.layers.1.mlp.up_proj.lora_A": t[name].clone()}))
    with pytest.raises(SourceError, match="lora_A"):
        plan_of(model)
    edit_tensors(model, lambda t: [t.pop("model.layers.1.mlp.up_proj.lora_A"), t.pop(name)])
    with pytest.raises(CheckpointError, match=name):
        plan_of(model)


def test_config_of_another_size(model: Path) -> None:
    set_config(model, intermediate_size=64)
    with pytest.raises(CheckpointError, match="shape"):
        plan_of(model)


def test_unknown_architecture(model: Path) -> None:
    set_config(model, model_type="brandnew", architectures=["BrandNewForCausalLM"])
    with pytest.raises(SourceError, match="brandnew"):
        plan_of(model)


def test_leftover_buffers_of_old_checkpoints_are_dropped(model: Path) -> None:
    edit_tensors(model, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert not any("inv_freq" in tensor.name for tensor in plan(source=str(model)).tensors)


@pytest.mark.parametrize(
    ("model_type", "sizes", "says"),
    [
        ("mixtral", {"num_local_experts": 4, "intermediate_size": 16}, "already a mixture of experts"),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16}, "already a mixture of experts"),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 32}, "FFN|feed-forward"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "FFN|feed-forward"),
        ("bert", {"intermediate_size": 32, "is_decoder": False}, "causal"),
        ("t5", {"d_model": 32, "d_ff": 32, "num_layers": 2}, "encoder-decoder|causal"),
    ],
)
def test_models_of_other_kinds(model_type: str, sizes: dict[str, object], says: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    config = AutoConfig.for_model(model_type, **{**common, **sizes})
    causal = model_type not in ("bert", "t5")
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(SourceError, match=says):
        plan_of(tmp_path / "other")
