"""A streamed model is the model that from_pretrained gives, bit for bit, and whatever does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MOE_CONFIGS, dense_gpt2, dense_llama, edit_tensors, moe_of, random_moe, save, tiny_tokenizer
from transformers import AutoModelForCausalLM

from smolmoe.errors import CheckpointError, SourceError
from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.moe.streaming import StreamedModel, random_like

BATCHES = [
    {"input_ids": torch.arange(5, 16)[None]},
    {"input_ids": torch.arange(20, 36).view(2, 8), "attention_mask": torch.tensor([[1] * 8, [0] * 3 + [1] * 5])},
]


def generic(kind: str) -> Any:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    dense, layers = (dense_llama(), "model.layers") if kind == "llama" else (dense_gpt2(), "transformer.h")
    torch.manual_seed(1)
    config = SmolMoeConfig(
        text_config=dense.config.to_dict(),
        layers_module=layers,
        gated=kind == "llama",
        mlp_bias=kind == "gpt2",
        hidden_act="silu" if kind == "llama" else "gelu_new",
        moe_layers=[1],
        num_experts=4,
        moe_intermediate_size=24,
    )
    return SmolMoeForCausalLM(config).eval()


def build(kind: str) -> Any:
    if kind.startswith("generic-"):
        return generic(kind.removeprefix("generic-"))
    return {"llama": dense_llama, "gpt2": dense_gpt2}[kind]() if kind in ("llama", "gpt2") else random_moe(kind)


def aligned(model: Any) -> Any:
    """from_pretrained maps the file, and kernels may add in another order where a mapped weight is not aligned."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


KINDS = ["llama", "gpt2", "generic-llama", "generic-gpt2", *MOE_CONFIGS]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_from_pretrained_bit_for_bit_with_no_layer_resident(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    save(model, tmp_path)
    whole = aligned(load_model(tmp_path))
    assert type(whole) is type(model)
    with torch.no_grad(), StreamedModel(tmp_path, resident_bytes=0) as streamed:
        for batch, logits in zip(BATCHES, streamed.logits(BATCHES), strict=True):
            expected = whole(**batch).logits
            assert torch.equal(logits, expected)
            assert torch.equal(logits, model(**batch).logits)
            assert torch.equal(streamed.model(**batch).logits, expected)
        settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
        assert torch.equal(streamed.model.generate(**BATCHES[1], **settings), whole.generate(**BATCHES[1], **settings))
        assert all(parameter.is_meta for layer in streamed.layers for parameter in layer.parameters())
        assert streamed.tokenizer("The sum")["input_ids"]


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe", "granitemoeshared", "generic-llama"])
def test_equals_from_pretrained_in_bfloat16(kind: str, tmp_path: Path) -> None:
    save(build(kind).to(torch.bfloat16), tmp_path)
    whole = aligned(load_model(tmp_path, dtype=torch.bfloat16))
    with torch.no_grad(), StreamedModel(tmp_path, dtype=torch.bfloat16, resident_bytes=0) as streamed:
        assert streamed.stored_dtype() == torch.bfloat16
        assert torch.equal(next(streamed.logits(BATCHES[:1])), whole(**BATCHES[0]).logits)


def test_what_transformers_keeps_in_fp32_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import MixtralForCausalLM

    monkeypatch.setattr(MixtralForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
    save(random_moe("mixtral"), tmp_path)
    whole = load_model(tmp_path, dtype=torch.bfloat16)
    with StreamedModel(tmp_path, dtype=torch.bfloat16) as streamed:
        for layer in range(2):
            streamed._load_layer(layer)  # not run: the class does not expect it
        for name, parameter in streamed.model.named_parameters():
            assert parameter.dtype == whole.get_parameter(name).dtype
        assert streamed.layers[1].input_layernorm.weight.dtype == torch.float32


def test_shards_untied_head_and_part_of_the_layers_resident(tmp_path: Path) -> None:
    model = random_moe("mixtral", tie_word_embeddings=False, num_hidden_layers=4)
    save(model, tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    layer = sum(parameter.numel() * 4 for parameter in model.model.layers[0].parameters())
    with torch.no_grad(), StreamedModel(tmp_path, resident_bytes=3 * layer) as streamed:
        assert not streamed.resident
        for _ in range(2):
            assert torch.equal(streamed.model(**BATCHES[0]).logits, model(**BATCHES[0]).logits)
        held = [not next(layer.parameters()).is_meta for layer in streamed.layers]
        assert held == [True, True, False, False]


def test_all_layers_stay_where_they_fit(tmp_path: Path) -> None:
    save(dense_llama(), tmp_path)
    with torch.no_grad(), StreamedModel(tmp_path) as streamed:
        assert streamed.resident
        streamed.model(**BATCHES[0])
        weight = streamed.layers[0].mlp.up_proj.weight
        streamed.model(**BATCHES[0])
        assert streamed.layers[0].mlp.up_proj.weight is weight


def test_stored_dtype_rounds_before_computing(tmp_path: Path) -> None:
    model = dense_llama()
    save(model, tmp_path)
    rounded = dense_llama()
    for parameter in rounded.parameters():  # not `model.to`: the rotary frequencies are not stored
        parameter.data = parameter.data.bfloat16().float()
    with torch.no_grad(), StreamedModel(tmp_path, stored_dtype=torch.bfloat16, resident_bytes=0) as streamed:
        logits = next(streamed.logits(BATCHES[:1]))
        assert torch.equal(logits, rounded(**BATCHES[0]).logits)
        assert not torch.equal(logits, model(**BATCHES[0]).logits)


def test_transform_changes_the_named_parameters_the_same_way_each_time(tmp_path: Path) -> None:
    model = random_moe("mixtral")
    save(model, tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    redraw = random_like([name], seed=3)
    with torch.no_grad(), StreamedModel(tmp_path, resident_bytes=0) as streamed, streamed.transformed(redraw):
        first, second = (streamed.model(**BATCHES[0]).logits for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, model(**BATCHES[0]).logits)
        before = model.get_parameter(name)
        model.get_parameter(name).copy_(redraw(name, before))
        assert torch.equal(first, model(**BATCHES[0]).logits)
    assert redraw("model.norm.weight", before) is before


def test_mlp_is_what_the_layer_adds_up(tmp_path: Path) -> None:
    save(random_moe("granitemoeshared"), tmp_path)
    with StreamedModel(tmp_path) as streamed:
        assert streamed.mlp(0) == (streamed.layers[0].block_sparse_moe, streamed.layers[0].shared_mlp)
    save(dense_gpt2(), tmp_path / "gpt2")
    with StreamedModel(tmp_path / "gpt2") as streamed:
        assert streamed.mlp(1) == (streamed.layers[1].mlp,)


def test_a_hook_sees_which_batch_is_in_flight(tmp_path: Path) -> None:
    save(dense_llama(), tmp_path)
    with StreamedModel(tmp_path, resident_bytes=0) as streamed:
        seen: list[int] = []
        for layer in streamed.layers:
            layer.mlp.register_forward_hook(lambda *_: seen.append(streamed.current))
        list(streamed.logits(BATCHES))
    assert seen == [0, 1, 0, 1]


def test_the_tokenizer_of_the_generic_model_is_the_dense_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedConfig

    def unknown(*args: Any, **options: Any) -> None:
        raise AssertionError("transformers had to guess what kind of model this is")

    save(generic("gpt2"), tmp_path / "moe")
    assert load_tokenizer(tmp_path) is None
    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", classmethod(unknown))
    monkeypatch.setattr("smolmoe.moe.loading.load_config", lambda folder: generic("gpt2").config)
    tokenizer = load_tokenizer(tmp_path / "moe")
    assert tokenizer("The sum")["input_ids"] == tiny_tokenizer()("The sum")["input_ids"]


# What must be noticed before anything is run


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    return save(moe_of(dense_llama()), tmp_path / "mixtral")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.block_sparse_moe.experts.2.w1.weight",
        "model.layers.0.block_sparse_moe.experts.3.w2.weight",
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ],
)
def test_an_absent_tensor_is_named(mixtral: Path, name: str) -> None:
    edit_tensors(mixtral, lambda tensors: tensors.pop(name))
    in_memory = {"w1": "experts.gate_up_proj", "w2": "experts.down_proj"}.get(name.split(".")[-2], name.split(".")[-2])
    with pytest.raises(CheckpointError, match=in_memory) as caught:
        StreamedModel(mixtral)
    if "layers" in name:
        assert f"layers.{name.split('.')[2]}." in str(caught.value)
    with pytest.raises(CheckpointError, match=in_memory):
        load_model(mixtral)


def test_a_whole_absent_expert_and_a_selection_bias_are_noticed(mixtral: Path, tmp_path: Path) -> None:
    def without_expert(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.0.block_sparse_moe.experts.3." in name]:
            del tensors[name]

    edit_tensors(mixtral, without_expert)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.(gate_up|down)_proj \(\[3, "):
        StreamedModel(mixtral)
    glm = save(random_moe("glm4_moe"), tmp_path / "glm")
    edit_tensors(glm, lambda tensors: tensors.pop("model.layers.1.mlp.gate.e_score_correction_bias"))
    with pytest.raises(CheckpointError, match="e_score_correction_bias"):
        StreamedModel(glm)


def test_an_unknown_and_a_misshapen_tensor_are_named(mixtral: Path) -> None:
    def misshape(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.surprise"] = torch.zeros(2)
        tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(3, 32)

    edit_tensors(mixtral, misshape)
    with pytest.raises(CheckpointError) as caught:
        StreamedModel(mixtral)
    assert "model.layers.0.mlp.surprise" in str(caught.value)
    assert "k_proj.weight ([3, 32], the config says [16, 32])" in str(caught.value)


def test_an_untied_head_must_be_in_the_files(tmp_path: Path) -> None:
    save(dense_llama(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        StreamedModel(tmp_path)


def test_swapped_halves_and_a_wrong_scale_change_the_logits(mixtral: Path) -> None:
    expected = load_model(mixtral)(**BATCHES[0]).logits

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        prefix = "model.layers.0.block_sparse_moe.experts.1"
        first, third = tensors[f"{prefix}.w1.weight"], tensors[f"{prefix}.w3.weight"]
        tensors[f"{prefix}.w1.weight"], tensors[f"{prefix}.w3.weight"] = third, first

    edit_tensors(mixtral, swap)
    with StreamedModel(mixtral) as streamed:
        assert (next(streamed.logits(BATCHES[:1])) - expected).abs().max() > 1e-3


def test_what_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    save(dense_llama(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(SourceError, match="unheard_of"):
        StreamedModel(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(SourceError):
        StreamedModel(tmp_path)


def test_the_stock_model_is_loaded_by_the_stock_class(mixtral: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(mixtral)
    assert torch.equal(load_model(mixtral)(**BATCHES[0]).logits, stock(**BATCHES[0]).logits)
