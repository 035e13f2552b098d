"""Sources as people have them become plain checkpoints that compute the same, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import zoo
from tests.helpers import SIZES, save, tiny_tokenizer

from smolmoe import import_model, upcycle
from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.provenance import read_provenance
from smolmoe.errors import CheckpointError, RequestError, SmolmoeError, SourceError

TEXT = {**SIZES, "intermediate_size": 48, "num_hidden_layers": 3}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
IDS = torch.arange(3, 27)[None]


def _composite(name: str) -> Any:
    """A tiny random multimodal model."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    sections = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    tied = {"tie_word_embeddings": True}
    siglip = {**VISION, "image_size": 16, "patch_size": 8}
    settings: dict[str, Any] = {
        "gemma3": {
            "text_config": {**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 24},
            "vision_config": {"model_type": "siglip_vision_model", **siglip},
            "mm_tokens_per_image": 1,
        },
        "qwen2_vl": {
            "text_config": {**TEXT, "rope_parameters": sections},
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
            "tie_word_embeddings": False,
        },
        "qwen2_5_vl": {"text_config": {**TEXT, "rope_parameters": sections}, "vision_config": QWEN_VISION, **tied},
        "qwen3_vl": {
            "text_config": {**TEXT, "rope_parameters": {**sections, "mrope_interleaved": True}},
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
            **tied,
        },
        "smolvlm": {
            "text_config": {"model_type": "llama", **TEXT, "tie_word_embeddings": False},
            "vision_config": {"model_type": "smolvlm_vision", **siglip},
            "tie_word_embeddings": False,
        },
        "llava": {
            "text_config": {"model_type": "llama", **TEXT, "tie_word_embeddings": False},
            "vision_config": {"model_type": "siglip_vision_model", **siglip},
            "tie_word_embeddings": False,
        },
    }
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **settings[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("name", ["gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "llava"])
def test_the_text_model_computes_what_the_whole_does_of_text(name: str, tmp_path: Path) -> None:
    whole = _composite(name)
    source = save(whole, tmp_path / "whole")
    result = import_model(source, tmp_path / "text", text_model=True)
    text = _loaded(result.out)
    assert type(text).__name__ == result.architecture
    assert result.parameters < sum(parameter.numel() for parameter in whole.parameters())
    assert _close(_logits(text), _logits(whole))
    assert (result.out / "tokenizer.json").is_file()
    assert read_provenance(result.out)["stage"] == "import"


def test_a_text_model_is_upcycled_by_request(tmp_path: Path) -> None:
    whole = _composite("gemma3")
    source = save(whole, tmp_path / "whole")
    with pytest.raises(SourceError, match="composite") as refused:
        upcycle(source, tmp_path / "moe", experts=4)
    assert "text_model=True" in str(refused.value.fix)
    result = upcycle(source, tmp_path / "moe", experts=4, text_model=True)
    assert result.target == "beam"
    assert _close(_logits(_loaded(result.out)), _logits(whole), 1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moe", "whole"]
    dry = upcycle(source, tmp_path / "other", experts=4, text_model=True, dry_run=True)
    assert dry.plan.parameters == result.plan.parameters
    assert not (tmp_path / "other").exists()


def test_a_plain_model_has_no_text_model_to_take(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a multimodal model"):
        import_model(zoo.folder("llama"), tmp_path / "out", text_model=True)
    with pytest.raises(RequestError, match="nothing else was asked for"):
        import_model(zoo.folder("llama"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_model_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    source = save(_composite("smolvlm"), tmp_path / "whole")
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if "text_model.layers.1.mlp.down_proj" in name)
    del tensors[name]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        import_model(source, tmp_path / "text", text_model=True)


# -- fp8 ----------------------------------------------------------------------------------------------------------


def _quantised(source: Path, out: Path, block: tuple[int, int] = (16, 24)) -> dict[str, torch.Tensor]:
    """A copy of a checkpoint with block-wise fp8 projections; returns what its weights stand for."""
    out.mkdir()
    for path in source.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    tensors, meant = load_file(source / "model.safetensors"), {}
    stored = {}
    for name, value in tensors.items():
        meant[name] = stored[name] = value
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = value.shape
        counts = -(-rows // block[0]), -(-columns // block[1])
        scale = torch.rand(counts) * 0.01 + 0.001
        spread = torch.kron(scale, torch.ones(block))[:rows, :columns]
        stored[name] = (value / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        meant[name] = stored[name].float() * spread
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block)}
    (out / "config.json").write_text(json.dumps(config))
    return meant


def test_fp8_is_dequantised_block_by_block(tmp_path: Path) -> None:
    meant = _quantised(zoo.folder("llama"), tmp_path / "fp8")
    result = import_model(tmp_path / "fp8", tmp_path / "plain", dequantise=True, dtype="float32")
    found = load_file(result.out / "model.safetensors")
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[name], value) for name, value in meant.items())
    assert result.dequantised == {"F8_E4M3": 21}
    assert "quantization_config" not in json.loads((result.out / "config.json").read_text())
    assert read_provenance(result.out)["stored_types"] == {"F8_E4M3": 21}


def test_fp8_is_upcycled_by_request(tmp_path: Path) -> None:
    meant = _quantised(zoo.folder("llama"), tmp_path / "fp8")
    with pytest.raises(SourceError, match="quantised") as refused:
        upcycle(tmp_path / "fp8", tmp_path / "moe", experts=4)
    assert "dequantise=True" in str(refused.value.fix)
    result = upcycle(tmp_path / "fp8", tmp_path / "moe", experts=4, dequantise=True)
    dense = zoo.build("llama")
    dense.load_state_dict(meant, strict=False)
    assert _close(_logits(_loaded(result.out)), _logits(dense), 1e-5)


def _edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


FIRST = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(f"{FIRST}_scale_inv"), "its scale .* is missing"),
        (lambda tensors: tensors.update({f"{FIRST}_scale_inv": torch.ones(2, 2)}), "has shape \\(2, 2\\)"),
        (lambda tensors: tensors[FIRST].view(torch.uint8).fill_(0x7F), "NaN or infinity"),
    ],
)
def test_bad_fp8_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    _quantised(zoo.folder("llama"), tmp_path / "fp8")
    _edit(tmp_path / "fp8", change)
    with pytest.raises(CheckpointError, match=says):
        import_model(tmp_path / "fp8", tmp_path / "plain", dequantise=True)
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize(
    ("settings", "says"), [(None, "not quantised"), ({"quant_method": "awq"}, "only fp8 weights"), ({}, "not empty")]
)
def test_other_quantisation_is_refused(settings: Any, says: str, tmp_path: Path) -> None:
    _quantised(zoo.folder("llama"), tmp_path / "fp8")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    config.pop("quantization_config")
    config |= {} if settings is None else {"quantization_config": settings}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SmolmoeError, match=says):
        import_model(tmp_path / "fp8", tmp_path / "plain", dequantise=True)


# -- GGUF ---------------------------------------------------------------------------------------------------------


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as llama.cpp stores Llama's: rotary pairs next to each other."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf(model: Any, path: Path, kind: str = "F32", **more: Any) -> dict[str, torch.Tensor]:
    """A model as llama.cpp's converter writes it; returns what its weights stand for."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model(more.pop("tokenizer", "gpt2"))
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<end>", "<pad>") else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for key, value in more.pop("settings", {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{arch}.{key}", value)
    for name, factors in more.items():
        writer.add_tensor(f"{name}.weight", np.array(factors, dtype=np.float32))
    quant = gguf.GGMLQuantizationType[kind]
    meant = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = value.numpy()
        if data.ndim > 1:
            packed = gguf.quants.quantize(data, quant)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(packed, quant).astype(np.float32).copy())
        else:
            meant[name] = value
        place, _, part = name.rpartition(".")
        if place.startswith("model.layers."):
            _, _, layer, rest = place.split(".", 3)
            if arch == "llama" and rest in ("self_attn.q_proj", "self_attn.k_proj"):
                data = _permuted(data, config.num_attention_heads if "q_" in rest else config.num_key_value_heads)
            target = f"blk.{layer}.{_NAMES[rest]}.{part}"
        else:
            target = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                place
            ] + f".{part}"
        if data.ndim > 1:
            writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(data), quant), raw_dtype=quant)
        else:
            writer.add_tensor(target, np.ascontiguousarray(data.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        ("llama", "F32", "float32"),
        ("qwen2", "F16", "float16"),
        ("llama", "Q8_0", "float32"),
        ("qwen2", "BF16", "bfloat16"),
    ],
)
def test_a_gguf_file_becomes_a_checkpoint(name: str, kind: str, dtype: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96} if name == "llama" else {}
    model = zoo.build(name, **wide)
    meant = _gguf(model, tmp_path / "model.gguf", kind)
    result = import_model(tmp_path / "model.gguf", tmp_path / "plain")
    assert result.dtype == dtype
    assert result.dequantised == ({"Q8_0": 22} if kind == "Q8_0" else {})
    assert sum(result.copied.values()) + sum(result.dequantised.values()) == len(meant)
    found = _loaded(result.out)
    rounded = {key: value.to(getattr(torch, dtype)).float() for key, value in meant.items()}
    for key, value in rounded.items():
        assert torch.equal(found.state_dict()[key], value), key
    model.load_state_dict(rounded, strict=False)
    model.tie_weights()
    assert _close(_logits(found), _logits(model))
    open_checkpoint(result.out)
    assert "quantiz" not in (result.out / "config.json").read_text()


def test_the_tokenizer_of_a_gguf_file_is_kept(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _gguf(zoo.build("llama"), tmp_path / "model.gguf")
    result = import_model(tmp_path / "model.gguf", tmp_path / "plain")
    text = "def add(a, b):\n    return a + b"
    assert AutoTokenizer.from_pretrained(result.out)(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    upcycled = upcycle(result.out, tmp_path / "moe", experts=4)
    assert upcycled.verification is not None
    assert upcycled.verification.passed


def test_a_tokenizer_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    _gguf(zoo.build("llama"), tmp_path / "model.gguf", tokenizer="unheard-of")
    with pytest.raises(SourceError, match="cannot read the tokenizer") as refused:
        import_model(tmp_path / "model.gguf", tmp_path / "plain")
    assert "tokenizer=" in str(refused.value.fix)
    import_model(tmp_path / "model.gguf", tmp_path / "plain", tokenizer=str(zoo.folder("llama")))
    assert (tmp_path / "plain" / "tokenizer.json").is_file()
    with pytest.raises(RequestError, match="only the tokenizer of a GGUF file"):
        import_model(zoo.folder("llama"), tmp_path / "other", text_model=True, tokenizer="x")


def test_the_divisors_of_llama3_become_its_scaling(tmp_path: Path) -> None:
    from smolmoe.surgery.imports.gguf import _divisor

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = zoo.build("llama", rope_parameters=rope)
    factors = [_divisor(500000.0 ** (-i / 4), rope) for i in range(4)]
    _gguf(model, tmp_path / "model.gguf", rope_freqs=factors)
    result = import_model(tmp_path / "model.gguf", tmp_path / "plain")
    found = _loaded(result.out)
    assert found.config.rope_parameters == rope
    assert _close(_logits(found), _logits(model))
    _gguf(model, tmp_path / "other.gguf", rope_freqs=[1.0, 2.0, 3.0, 8.0])
    with pytest.raises(SourceError, match="not Llama 3's"):
        import_model(tmp_path / "other.gguf", tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope.scaling.type": "yarn"}, "yarn"),
        ({"attention.sliding_window": 8}, "transformers reads None"),
    ],
)
def test_settings_that_the_reader_drops_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    _gguf(zoo.build("llama"), tmp_path / "model.gguf", settings=settings)
    with pytest.raises(SourceError, match=says):
        import_model(tmp_path / "model.gguf", tmp_path / "plain")


def test_bad_gguf_files_are_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    _gguf(zoo.build("llama"), tmp_path / "model.gguf")
    whole = (tmp_path / "model.gguf").read_bytes()
    for count in (0, 3, 100, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:count])
        with pytest.raises(CheckpointError, match="truncated"):
            import_model(tmp_path / "cut.gguf", tmp_path / "plain")
    (tmp_path / "text.gguf").write_text("not a model" * 100)
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        import_model(tmp_path / "text.gguf", tmp_path / "plain")
    writer = gguf.GGUFWriter(tmp_path / "unknown.gguf", "unheard-of")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="no GGUF file of this architecture") as refused:
        import_model(tmp_path / "unknown.gguf", tmp_path / "plain")
    assert refused.value.value == "unheard-of"
    assert not (tmp_path / "plain").exists()


def test_a_gguf_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    model = zoo.build("llama")
    del model.model.layers[1].mlp.up_proj
    _gguf(model, tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="missing or misshapen"):
        import_model(tmp_path / "model.gguf", tmp_path / "plain")
