"""The generic MoE against dense models, against a naive loop, and against the stock routers of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from smolmoe.moe.generic import SmolMoeBlock, SmolMoeConfig, SmolMoeForCausalLM, SmolMoeRouter

PAD, VOCAB, D, WIDTH, LAYERS = 0, 96, 32, 48, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": D, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "n_inner": WIDTH}


@dataclass(frozen=True)
class Family:
    """A dense family by hand: its config, and how to read the [out, in] weights of its FFN, gate rows first."""

    config: str
    options: dict[str, Any]
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    act: str = "silu"
    layers: str = "model.layers"
    gated: bool = True
    bias: bool = False
    transposed: bool = False

    def text_config(self) -> transformers.PreTrainedConfig:
        return getattr(transformers, self.config)(**self.options)


SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
PLAIN = {"gated": False, "bias": True, "act": "gelu_new"}
FAMILIES = {
    "llama": Family("LlamaConfig", SIZES),
    "llama_tied": Family("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "llama_bias": Family("LlamaConfig", {**SIZES, "mlp_bias": True}, bias=True),
    "mistral": Family("MistralConfig", {**SIZES, "sliding_window": 4}),
    "qwen2": Family("Qwen2Config", {**SIZES, **SLIDING, "use_sliding_window": True}),
    "qwen3": Family("Qwen3Config", {**SIZES, "head_dim": 8}),
    "olmo2": Family("Olmo2Config", SIZES),
    "smollm3": Family("SmolLM3Config", SIZES),
    "gemma": Family("GemmaConfig", {**SIZES, "head_dim": 8}, act="gelu_pytorch_tanh"),
    "gemma2": Family("Gemma2Config", {**SIZES, **SLIDING, "head_dim": 8}, act="gelu_pytorch_tanh"),
    "gemma3": Family("Gemma3TextConfig", {**SIZES, **SLIDING, "head_dim": 8}, act="gelu_pytorch_tanh"),
    "phi3": Family("Phi3Config", SIZES, up=("gate_up_proj",)),
    "stablelm": Family("StableLmConfig", SIZES),
    "gpt2": Family("GPT2Config", GPT2_SIZES, ("c_fc",), "c_proj", layers="transformer.h", transposed=True, **PLAIN),
    "phi": Family("PhiConfig", SIZES, ("fc1",), "fc2", **PLAIN),
    "starcoder2": Family("Starcoder2Config", SIZES, ("c_fc",), "c_proj", "gelu_pytorch_tanh", gated=False, bias=True),
    "gpt_neox": Family(
        "GPTNeoXConfig", SIZES, ("dense_h_to_4h",), "dense_4h_to_h", "gelu", "gpt_neox.layers", gated=False, bias=True
    ),
}


def build_dense(family: Family, seed: int = 0) -> Any:
    """A tiny dense model whose logits depend strongly on its FFNs."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family.text_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.05))
    return model


def moe_config(family: Family, **options: Any) -> SmolMoeConfig:
    return SmolMoeConfig(
        **{
            "text_config": family.text_config().to_dict(),
            "layers_module": family.layers,
            "mlp_module": "mlp",
            "gated": family.gated,
            "mlp_bias": family.bias,
            "hidden_act": family.act,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": WIDTH,
            **options,
        }
    )


def ffn_tensors(ffn: nn.Module, family: Family) -> dict[str, torch.Tensor]:
    """The dense FFN as `{up|down}.{weight|bias}` with weights [out, in], gate rows before up rows."""
    tensors = {}
    for kind, names in (("up", family.up), ("down", (family.down,))):
        leaves = [ffn.get_submodule(name) for name in names]
        tensors[f"{kind}.weight"] = torch.cat([leaf.weight.T if family.transposed else leaf.weight for leaf in leaves])
        if family.bias:
            tensors[f"{kind}.bias"] = torch.cat([leaf.bias for leaf in leaves])
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def upcycle(dense: Any, family: Family, **options: Any) -> SmolMoeForCausalLM:
    """By hand: the dense tensors under `lm.`, each expert a copy of the FFN, a random router.

    A shared expert (of the dense width) takes half of the FFN's output, the routed experts the other half.
    """
    config = moe_config(family, **options)
    tensors = {f"lm.{k}": v for k, v in dense.state_dict().items() if ".mlp." not in k}
    up_name = "gate_up_proj" if family.gated else "up_proj"
    share = 0.5 if config.shared_expert_intermediate_size else 1.0
    for layer in range(LAYERS):
        prefix = f"lm.{family.layers}.{layer}.mlp"
        if layer not in config.moe_layers:
            own = {k: v for k, v in dense.state_dict().items() if k.startswith(prefix.removeprefix("lm.") + ".")}
            tensors |= {f"lm.{k}": v for k, v in own.items()}
            continue
        ffn = ffn_tensors(dense.get_submodule(f"{family.layers}.{layer}.mlp"), family)
        for name, tensor in ffn.items():
            kind, what = name.split(".")
            target, scaled = (up_name, tensor) if kind == "up" else ("down_proj", tensor * share)
            suffix = "" if what == "weight" else "_bias"
            tensors[f"{prefix}.experts.{target}{suffix}"] = scaled.expand(config.num_experts, *scaled.shape).clone()
            if config.shared_expert_intermediate_size:
                tensors[f"{prefix}.shared_expert.{target}.{what}"] = scaled
        tensors[f"{prefix}.gate.weight"] = torch.randn(config.num_experts, D)
        tensors[f"{prefix}.gate.e_score_correction_bias"] = 0.1 * torch.randn(config.num_experts)
    model = SmolMoeForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert not missing
    return model


def padded_batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """Three sequences of 9, the first two left-padded."""
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row, pad in ((0, 4), (1, 1)):
        ids[row, :pad], mask[row, :pad] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


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
    assert actual.past_key_values is not None
    assert actual.router_logits is None
    assert actual.aux_loss is None
    assert isinstance(moe(**batch, return_dict=False), tuple)
    assert moe(**batch, logits_to_keep=2).logits.shape == (3, 2, VOCAB)
    moe.config.use_cache = False  # as the Trainer does
    assert moe(**batch).past_key_values is None


# --- saving and loading ----------------------------------------------------------------------------------------------

CHILD = """
import json, sys
class NoSmolmoe:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "smolmoe", "the checkpoint imports smolmoe"
sys.meta_path.insert(0, NoSmolmoe())
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
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in models)]
    child = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
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
    assert again.get_text_config().to_dict() | {"_name_or_path": 0} == config.text_config.to_dict() | {
        "_name_or_path": 0
    }
    assert (again.moe_layers, again.scoring_func, again.moe_intermediate_size) == ([1], "sigmoid", WIDTH)


def test_loading_in_bf16_keeps_the_selection_bias_in_fp32(tmp_path: Path) -> None:
    upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"]).save_pretrained(tmp_path)
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
    moe = upcycle(build_dense(FAMILIES["llama_tied"]), FAMILIES["llama_tied"])
    assert moe.lm.config is moe.config.get_text_config()
    moe.set_attn_implementation("eager")
    assert moe.lm.config._attn_implementation == "eager"
    moe.resize_token_embeddings(VOCAB + 4)
    assert moe.config.get_text_config().vocab_size == VOCAB + 4
    assert moe.get_output_embeddings().weight is moe.get_input_embeddings().weight
    ids = torch.tensor([[VOCAB + 3, 5, 6]])
    assert moe(input_ids=ids, labels=ids).loss.isfinite()
    assert moe.get_decoder() is moe.lm.model


# --- the layer against a naive loop ----------------------------------------------------------------------------------


def naive_route(router: SmolMoeRouter, token: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """The chosen experts of one token and their weights."""
    logits = router.weight @ token
    scores = torch.sigmoid(logits) if router.scoring_func == "sigmoid" else torch.exp(logits) / torch.exp(logits).sum()
    ranking = (scores + router.e_score_correction_bias).tolist()
    chosen = sorted(range(len(ranking)), key=lambda e: -ranking[e])[: router.top_k]
    total = sum(scores[e] for e in chosen) if router.norm_topk_prob else 1.0
    return [(e, scores[e] / total) for e in chosen]


def naive_ffn(
    act: Callable[[torch.Tensor], torch.Tensor], token: torch.Tensor, gated: bool, tensors: list[torch.Tensor | None]
) -> torch.Tensor:
    up_weight, up_bias, down_weight, down_bias = tensors
    hidden = up_weight @ token + (0 if up_bias is None else up_bias)
    half = len(hidden) // 2
    hidden = act(hidden[:half]) * hidden[half:] if gated else act(hidden)
    return down_weight @ hidden + (0 if down_bias is None else down_bias)


def naive_block(block: SmolMoeBlock, x: torch.Tensor, config: SmolMoeConfig) -> torch.Tensor:
    act, experts, shared = ACT2FN[config.hidden_act], block.experts, block.shared_expert
    up = "gate_up_proj" if config.gated else "up_proj"
    names = (up, f"{up}_bias", "down_proj", "down_proj_bias")
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        row = torch.zeros_like(token)
        for e, weight in naive_route(block.gate, token):
            row = row + weight * naive_ffn(
                act,
                token,
                config.gated,
                [t[e] if (t := getattr(experts, n, None)) is not None else None for n in names],
            )
        if shared is not None:
            leaves = (getattr(shared, up), shared.down_proj)
            row = row + naive_ffn(act, token, config.gated, [t for leaf in leaves for t in (leaf.weight, leaf.bias)])
        rows.append(row)
    return torch.stack(rows).reshape(x.shape)


def outputs_and_gradients(
    block: SmolMoeBlock, x: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    block.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in block.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", ["gated", "gated_bias", "plain", "plain_bias"])
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"scoring_func": "sigmoid", "shared_expert_intermediate_size": 6}, {"norm_topk_prob": False}],
    ids=["softmax", "sigmoid_shared", "not_renormalised"],
)
def test_outputs_and_all_gradients_are_those_of_the_naive_loop(
    implementation: str, kind: str, top_k: int, options: dict[str, Any]
) -> None:
    config = moe_config(
        FAMILIES["llama"],
        num_experts=5,
        num_experts_per_tok=top_k,
        moe_intermediate_size=8,
        gated=kind.startswith("gated"),
        mlp_bias=kind.endswith("bias"),
        hidden_act="gelu",
        **options,
    )
    config._experts_implementation = implementation
    torch.manual_seed(0)
    block = SmolMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    # The last expert gets no token, unless all are chosen; the first one is preferred.
    block.gate.e_score_correction_bias.copy_(torch.tensor([0.2, 0.0, 0.0, 0.0, -9.0]))
    x = torch.randn(2, 6, D)
    expected = outputs_and_gradients(block, x, lambda x: naive_block(block, x, config))
    actual = outputs_and_gradients(block, x, block)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    if top_k < 5:
        assert not actual["experts.down_proj"][4].any()
    if top_k > 1 or not config.norm_topk_prob:
        assert actual["gate.weight"].abs().max() > 1e-2


def test_dropout_acts_on_the_output_in_training_only() -> None:
    block = SmolMoeBlock(config := moe_config(FAMILIES["gpt2"], mlp_dropout=0.5))
    config._experts_implementation = "eager"
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, 16, D)
    full, dropped = block.eval()(x), block.train()(x)
    alive = dropped != 0
    assert 0.4 < alive.float().mean() < 0.6
    torch.testing.assert_close(dropped[alive], 2 * full[alive])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_routes_bit_for_bit_as_the_stock_routers(scoring: str, dtype: torch.dtype) -> None:
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeConfig, Glm4MoeTopkRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeTopKRouter

    sizes = {"hidden_size": D, "num_experts_per_tok": 3, "norm_topk_prob": True}
    stock = (
        Qwen3MoeTopKRouter(Qwen3MoeConfig(num_experts=8, **sizes))
        if scoring == "softmax"
        else Glm4MoeTopkRouter(Glm4MoeConfig(n_routed_experts=8, n_group=1, topk_group=1, **sizes))
    )
    ours = SmolMoeRouter(moe_config(FAMILIES["llama"], num_experts=8, num_experts_per_tok=3, scoring_func=scoring))
    torch.manual_seed(0)
    weight, x = torch.randn(8, D).to(dtype), torch.randn(64, D).to(dtype)
    stock.weight.data, ours.weight.data = weight, weight
    if scoring == "sigmoid":
        stock.e_score_correction_bias.copy_(bias := 0.1 * torch.randn(8))
        ours.e_score_correction_bias.copy_(bias)
    (logits, weights, chosen), (ours_logits, ours_weights, ours_chosen) = stock(x), ours(x)
    assert torch.equal(ours_logits, logits)
    order, ours_order = chosen.argsort(-1), ours_chosen.argsort(-1)
    assert torch.equal(ours_chosen.gather(-1, ours_order), chosen.gather(-1, order))
    assert ours_weights.dtype == weights.dtype
    # The order of the chosen experts, and with it the last bit of their sum, is free.
    torch.testing.assert_close(ours_weights.gather(-1, ours_order), weights.gather(-1, order), rtol=1e-6, atol=0)


# --- training --------------------------------------------------------------------------------------------------------


def router_gradients(moe: SmolMoeForCausalLM, **options: Any) -> list[torch.Tensor]:
    batch = padded_batch()
    moe.zero_grad()
    moe(**batch, labels=batch["input_ids"], **options).loss.backward()
    return [router.weight.grad.clone() for router in moe.routers()]


def spread_experts(moe: SmolMoeForCausalLM) -> None:
    torch.manual_seed(2)
    for block in moe.modules():
        if isinstance(block, SmolMoeBlock):
            block.experts.down_proj.data += 0.1 * torch.randn_like(block.experts.down_proj)


def test_the_router_learns_once_experts_differ() -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    assert max(g.abs().max() for g in router_gradients(moe)) < 1e-6  # copies: no choice is better than another
    spread_experts(moe)
    assert min(g.abs().max() for g in router_gradients(moe)) > 1e-4


def hand_aux_loss(logits: tuple[torch.Tensor, ...], mask: torch.Tensor, top_k: int, sigmoid: bool) -> torch.Tensor:
    """E * sum_e f_e * P_e, token by token."""
    tokens = [row for layer in logits for row, keep in zip(layer, mask.flatten().tolist(), strict=True) if keep]
    n_experts = logits[0].shape[1]
    chosen, probability = [0.0] * n_experts, [torch.zeros(())] * n_experts
    for row in tokens:
        scores = torch.sigmoid(row) if sigmoid else torch.exp(row)
        scores = scores / scores.sum()
        for e in range(n_experts):
            probability[e] = probability[e] + scores[e] / len(tokens)
        for e in sorted(range(n_experts), key=lambda e: -scores[e].item())[:top_k]:
            chosen[e] += 1 / len(tokens)
    return n_experts * sum(f * p for f, p in zip(chosen, probability, strict=True))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_the_aux_loss_is_the_formula_and_in_the_graph(scoring: str) -> None:
    family = FAMILIES["llama"]
    moe = upcycle(build_dense(family), family, scoring_func=scoring, router_aux_loss_coef=0.5)
    batch = padded_batch()
    with_aux = moe(**batch, labels=batch["input_ids"], output_router_logits=True)
    without = moe(**batch, labels=batch["input_ids"])
    assert [tuple(layer.shape) for layer in with_aux.router_logits] == [(27, 4)] * LAYERS
    expected = hand_aux_loss(with_aux.router_logits, batch["attention_mask"], 2, scoring == "sigmoid")
    torch.testing.assert_close(with_aux.aux_loss, expected)
    torch.testing.assert_close(with_aux.loss, without.loss + 0.5 * expected)
    weights = [router.weight for router in moe.routers()]
    hand = torch.autograd.grad(0.5 * expected, weights, retain_graph=True)
    assert min(g.abs().max() for g in hand) > 1e-4
    # The experts are copies, so the language-model loss gives the routers nothing: all they get is the aux loss.
    for actual, wanted in zip(router_gradients(moe, output_router_logits=True), hand, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)


def test_the_aux_loss_is_that_of_stock_mixtral() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    batch = padded_batch()
    for mask in (batch["attention_mask"], None):
        out = moe(batch["input_ids"], attention_mask=mask, output_router_logits=True)
        torch.testing.assert_close(out.aux_loss, load_balancing_loss_func(out.router_logits, 4, 2, mask))


def test_router_logits_of_a_replaced_forward_are_recorded() -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    router = moe.routers()[0]
    stock = router.forward
    router.forward = lambda x: (stock(x)[0] + 1, *stock(x)[1:])
    batch = padded_batch()
    replaced = moe(**batch, output_router_logits=True).router_logits[0]
    del router.forward
    torch.testing.assert_close(replaced - 1, moe(**batch, output_router_logits=True).router_logits[0])
    assert moe.can_record_outputs["router_logits"].target_class is SmolMoeRouter


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    moe = upcycle(build_dense(FAMILIES[name]), FAMILIES[name], router_aux_loss_coef=0.1)
    spread_experts(moe)
    batch = padded_batch()

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # for dropout
        moe.zero_grad()
        out = moe.train()(**batch, labels=batch["input_ids"], output_router_logits=True, use_cache=False)
        out.loss.backward()
        assert len(out.router_logits) == LAYERS
        return {name: p.grad.clone() for name, p in moe.named_parameters()}

    expected = gradients()
    moe.gradient_checkpointing_enable({"use_reentrant": False})
    assert moe.is_gradient_checkpointing
    actual = gradients()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, msg=lambda m, k=key: f"{k}: {m}")


def test_one_step_parts_the_experts() -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.1)
    router_gradients(moe)
    optimizer.step()
    experts = moe.lm.model.layers[0].mlp.experts.down_proj
    assert all((experts[a] - experts[b]).abs().max() > 1e-5 for a in range(4) for b in range(a))
    assert F.cosine_similarity(experts[0].flatten(), experts[1].flatten(), dim=0) > 0.9
