"""The generic MoE computes what its dense model computes, also after saving and loading without smolmoe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.moe.dense import (
    FAMILIES,
    LAYERS,
    PAD,
    SLIDING,
    VOCAB,
    WIDTH,
    D,
    Family,
    build_dense,
    moe_config,
    padded_batch,
    upcycle,
)
from tests.processes import NO_SMOLMOE, run

from smolmoe.moe.generic import SmolMoeBlock, SmolMoeConfig, SmolMoeForCausalLM, SmolMoeModel


def relative_gap(dense: Any, moe: Any) -> float:
    """max |Δlogit| / max |logit| over the tokens of a left-padded batch."""
    batch = padded_batch()
    keep = batch["attention_mask"].bool()
    with torch.no_grad():
        expected, actual = dense(**batch).logits[keep], moe(**batch).logits[keep]
    return float((actual - expected).abs().max() / expected.abs().max())


def generated(model: Any, **options: Any) -> torch.Tensor:
    return model.generate(
        **padded_batch(), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=PAD, **options
    )


REQUESTS = {
    "softmax": {},
    "sigmoid": {"scoring_func": "sigmoid"},
    "shared": {"shared_expert_intermediate_size": WIDTH},
    "one_layer": {"moe_layers": [1]},
}


CASES = [(name, "softmax") for name in FAMILIES]
CASES += [(name, other) for name in ("llama_bias", "phi3", "gpt2") for other in REQUESTS if other != "softmax"]


@pytest.mark.parametrize(("name", "request_name"), CASES)
def test_copies_compute_what_the_dense_model_computes(name: str, request_name: str) -> None:
    family = FAMILIES[name]
    dense = build_dense(family)
    moe = upcycle(dense, family, **REQUESTS[request_name])
    assert len(moe.routers()) == (1 if request_name == "one_layer" else LAYERS)
    assert relative_gap(dense, moe) <= 1e-5
    assert torch.equal(generated(dense), generated(moe))


def test_swapped_gate_and_up_are_noticed() -> None:
    family = FAMILIES["llama"]
    dense = build_dense(family)
    moe = upcycle(dense, family)
    for block in moe.modules():
        if isinstance(block, SmolMoeBlock):
            weight = block.experts.gate_up_proj.data
            block.experts.gate_up_proj.data = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
    assert relative_gap(dense, moe) > 1e-2


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}])
def test_other_ways_to_generate(options: dict[str, Any]) -> None:
    family = FAMILIES["gemma3"]
    dense = build_dense(family)
    moe = upcycle(dense, family, output_router_logits=True)  # which must not get in the way of a KV cache
    assert torch.equal(generated(dense, **options), generated(moe, **options))


def test_generate_from_embeddings() -> None:
    family = FAMILIES["qwen3"]
    dense = build_dense(family)
    moe = upcycle(dense, family)
    embeddings = moe.get_input_embeddings()(padded_batch()["input_ids"])
    outputs = [m.generate(inputs_embeds=embeddings, max_new_tokens=4, do_sample=False) for m in (dense, moe)]
    assert torch.equal(*outputs)


def test_loss_and_other_outputs_are_the_dense_ones() -> None:
    family = FAMILIES["llama"]
    dense = build_dense(family)
    moe = upcycle(dense, family)
    batch = padded_batch()
    options = {"labels": batch["input_ids"], "num_items_in_batch": 5, "output_hidden_states": True}
    expected, actual = dense(**batch, **options), moe(**batch, **options)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert len(actual.hidden_states) == len(expected.hidden_states)
    assert actual.cache is not None
    assert actual.router_logits is None
    assert actual.aux_loss is None
    assert isinstance(moe(**batch, return_dict=False), tuple)
    assert moe(**batch, logits_to_keep=2).logits.shape == (3, 2, VOCAB)
    moe.config.use_cache = False  # as the Trainer does
    assert moe(**batch).cache is None


# --- saving and loading ----------------------------------------------------------------------------------------------

CHILD = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, experts_implementation="grouped_mm")
    batch = load_file(folder + "/batch")
    tokens = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    model.save_pretrained(folder + "/again")
    save_file({"logits": model(**batch).logits.detach(), "tokens": tokens}, folder + "/result")
assert not any(name.split(".")[0] == "smolmoe" for name in sys.modules)
"""


def test_checkpoints_load_without_smolmoe(tmp_path: Path) -> None:
    models = {}
    for name, options in (("llama_tied", REQUESTS["shared"] | REQUESTS["sigmoid"]), ("gpt2", {"mlp_dropout": 0.1})):
        models[name] = upcycle(build_dense(FAMILIES[name]), FAMILIES[name], **options)
        models[name].save_pretrained(tmp_path / name)
        save_file(padded_batch(), tmp_path / name / "batch")
    run(NO_SMOLMOE + CHILD, *(tmp_path / name for name in models))
    for name, model in models.items():
        result = load_file(tmp_path / name / "result")
        torch.testing.assert_close(result["logits"], model(**padded_batch()).logits)
        assert torch.equal(result["tokens"], generated(model))
        saved, again = (load_file(tmp_path / name / sub / "model.safetensors") for sub in ("", "again"))
        assert saved.keys() == again.keys()
        assert all(torch.equal(saved[key], again[key]) for key in saved)
        configs = [json.loads((tmp_path / name / sub / "config.json").read_text()) for sub in ("", "again")]
        assert configs[0] == configs[1]
        assert (tmp_path / name / "again" / "modeling_smolmoe.py").is_file()


def expected_names(family: Family, shared: bool) -> set[str]:
    dense = set(build_dense(family).state_dict())
    names = {f"lm.{name}" for name in dense if ".mlp." not in name}
    up = "gate_up_proj" if family.gated else "up_proj"
    for layer in range(LAYERS):
        prefix = f"lm.{family.layers}.{layer}.mlp"
        names |= {f"{prefix}.gate.weight", f"{prefix}.gate.e_score_correction_bias"}
        for target in (up, "down_proj"):
            names |= {f"{prefix}.experts.{target}"} | ({f"{prefix}.experts.{target}_bias"} if family.bias else set())
            if shared:
                kinds = ("weight", "bias") if family.bias else ("weight",)
                names |= {f"{prefix}.shared_expert.{target}.{kind}" for kind in kinds}
    return names


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_bias", "gpt2", "phi3"])
def test_names_on_disk_are_those_in_memory(name: str, shared: bool, tmp_path: Path) -> None:
    family = FAMILIES[name]
    moe = upcycle(build_dense(family), family, **(REQUESTS["shared"] if shared else {}))
    moe.save_pretrained(tmp_path)
    names = expected_names(family, shared)
    assert set(moe.state_dict()) == names
    tied = {"lm.lm_head.weight"} if moe.config.tie_word_embeddings else set()
    assert (name in ("llama_tied", "gpt2")) == bool(tied)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert set(on_disk) == names - tied
    block = moe.get_submodule(f"lm.{family.layers}.0.mlp")
    rows = 2 * WIDTH if family.gated else WIDTH
    up = block.experts.gate_up_proj if family.gated else block.experts.up_proj
    assert up.shape == (4, rows, D)
    assert block.experts.down_proj.shape == (4, D, WIDTH)


def test_the_config_has_the_sizes_of_the_dense_model_and_of_the_moe() -> None:
    """Serving engines look for both in one place, and take a config with another inside for a multimodal model's."""
    config = moe_config(FAMILIES["gpt2"])
    assert config.get_text_config() is config
    assert (config.hidden_size, config.num_experts, config.num_hidden_layers) == (D, 4, config.text_config.n_layer)
    assert not hasattr(config, "no_such_setting")
    assert "hidden_size" not in config.to_dict()


def test_the_backbone_loads_without_the_head(tmp_path: Path) -> None:
    config = moe_config(FAMILIES["qwen2"])
    moe = SmolMoeForCausalLM(config).eval()
    moe.save_pretrained(tmp_path)
    base, found = SmolMoeModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    ids = torch.arange(12)[None]
    hidden = base.eval()(ids, use_cache=False).last_hidden_state
    assert torch.equal(moe.get_output_embeddings()(hidden), moe(ids, use_cache=False).logits)


def test_config_on_disk(tmp_path: Path) -> None:
    config = moe_config(FAMILIES["qwen2"], moe_layers=[1], scoring_func="sigmoid")
    config._name_or_path = config.text_config._name_or_path = "/somewhere"
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "smolmoe"
    assert written["auto_map"]["AutoModelForCausalLM"] == "modeling_smolmoe.SmolMoeForCausalLM"
    assert written["text_config"]["model_type"] == "qwen2"
    assert written["text_config"]["layer_types"] == SLIDING["layer_types"]
    assert written["text_config"]["tie_word_embeddings"] is False  # a default, written all the same
    assert (written["eos_token_id"], written["pad_token_id"]) == (2, PAD)
    assert "/somewhere" not in (tmp_path / "config.json").read_text()
    again = SmolMoeConfig.from_pretrained(tmp_path)
    assert again.text_config.to_dict() | {"_name_or_path": 0} == config.text_config.to_dict() | {"_name_or_path": 0}
    assert (again.moe_layers, again.scoring_func, again.moe_intermediate_size) == ([1], "sigmoid", WIDTH)


def test_the_selection_bias_is_loaded_in_fp32(tmp_path: Path) -> None:
    upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"]).save_pretrained(tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    moe = SmolMoeForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    assert {router.e_score_correction_bias.dtype for router in moe.routers()} == {torch.float32}
    assert moe(**padded_batch()).logits.dtype == torch.bfloat16


def test_a_missing_router_is_initialised_and_nothing_else_is(tmp_path: Path) -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    moe.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "lm.model.layers.1.mlp.gate.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = SmolMoeForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {lost}
    assert 0.005 < loaded.state_dict()[lost].std() < 0.04
    for name, tensor in tensors.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_new_model_is_initialised() -> None:
    moe = SmolMoeForCausalLM(moe_config(FAMILIES["gpt2"]))
    block = moe.lm.transformer.h[0].mlp
    for weight in (block.gate.weight, block.experts.up_proj, block.experts.down_proj):
        assert 0.015 < weight.std() < 0.025
    for zeros in (block.gate.e_score_correction_bias, block.experts.up_proj_bias, block.experts.down_proj_bias):
        assert not zeros.any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_experts", 0),
        ("num_experts_per_tok", 0),
        ("num_experts_per_tok", 5),
        ("moe_intermediate_size", -1),
        ("shared_expert_intermediate_size", -8),
        ("scoring_func", "tanh"),
        ("hidden_act", "nope"),
        ("mlp_dropout", 1.0),
        ("moe_layers", [0, 2]),
        ("moe_layers", [1, 1]),
    ],
)
def test_impossible_configs_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}=.* is out of range"):
        moe_config(FAMILIES["llama"], **{field: value})


def test_a_wrong_path_to_the_ffn_is_refused() -> None:
    with pytest.raises(AttributeError, match="feed_forward"):
        SmolMoeForCausalLM(moe_config(FAMILIES["llama"], mlp_module="feed_forward"))


def test_what_concerns_the_dense_model_reaches_it() -> None:
    moe = upcycle(build_dense(FAMILIES["gemma3"]), FAMILIES["gemma3"])
    assert moe.lm.config is moe.config.text_config
    moe.set_attn_implementation("eager")
    assert moe.lm.config._attn_implementation == "eager"
    moe.resize_token_embeddings(VOCAB + 4)
    assert moe.config.get_text_config().vocab_size == VOCAB + 4
    assert moe.get_output_embeddings().weight is moe.get_input_embeddings().weight
    ids = torch.tensor([[VOCAB + 3, 5, 6]])
    assert moe(input_ids=ids, labels=ids).loss.isfinite()
    assert moe.get_decoder() is moe.lm.model
