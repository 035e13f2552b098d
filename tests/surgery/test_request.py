"""Each request that contradicts itself or the source is refused by name, and says what would work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import zoo

from smolmoe.errors import RequestError, TargetError
from smolmoe.recipe import UpcycleRecipe, parse
from smolmoe.surgery.request import parse_layers


def plan(name: str = "llama", **options: Any) -> Any:
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.surgery.plan import make_plan

    recipe = parse(
        UpcycleRecipe, {"source": str(options.pop("source", None) or zoo.folder(name)), "out": "unused", **options}
    )
    specialists = {key: open_checkpoint(path) for key, path in recipe.expert.items()}
    return make_plan(recipe, open_checkpoint(recipe.source), specialists)


def test_half_of_the_neurons_can_be_shared_whatever_their_number() -> None:
    half, number = plan(shared="half", top_k=1), plan(shared=24, top_k=1)
    assert half.tensors == number.tensors
    assert half.recipe.shared == half.layout.shared_width == half.layout.width == 24


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"experts": 0}, "experts", "at least 1"),
        ({"top_k": 0}, "top_k", "at least 1"),
        ({"granularity": 0}, "granularity", "at least 1"),
        ({"top_k": 9}, "top_k", "at most 8"),
        ({"granularity": 5, "experts": 10, "top_k": 5}, "granularity", "does not divide the 48 neurons"),
        ({"granularity": 4, "experts": 6, "top_k": 4}, "granularity", "experts=8"),
        ({"granularity": 4, "top_k": 2}, "granularity", "top_k=4"),
        ({"granularity": 4, "top_k": 4, "shared": 10}, "granularity", "does not divide the 38 neurons"),
        ({"granularity": 2, "router": "zero"}, "router", "ties all experts"),
        ({"granularity": 4, "experts": 6, "top_k": 3, "subsets": "complementary"}, "granularity", "experts=8"),
        ({"granularity": 5, "experts": 7, "subsets": "random"}, "granularity", "does not divide the 48 neurons"),
        ({"subsets": "random"}, "subsets", "granularity=2"),
        ({"shared_by": "importance"}, "shared_by", "shared=WIDTH"),
        ({"shared": 16, "calibration": "x.jsonl"}, "calibration", "shared_by='importance'"),
        ({"router": "zero", "router_std": 0.1}, "router_std", "router='random'"),
        ({"router_std": 0.0}, "router_std", "router='zero'"),
        ({"gates": "sum"}, "gates", "normalised"),
        ({"shared": 48}, "shared", "shared='full'"),
        ({"shared": 0}, "shared", "between 1 and 47"),
        ({"shared": "third"}, "shared", "none, full, residual, half"),
        ({"router": "domains"}, "router", "router_data="),
        ({"router_data": "x.jsonl"}, "router_data", "router='domains'"),
        ({"noise_std": 0.1}, "noise_std", "diversify='noise'"),
        ({"drop_ratio": 0.1}, "drop_ratio", "diversify='drop'"),
        ({"lora_rank": 4}, "lora_rank", "diversify='lora'"),
        ({"diversify": "lora", "lora_rank": 0}, "lora_rank", "at least 1"),
        ({"diversify": "lora", "lora_std": 0.0}, "lora_std", "positive"),
        ({"diversify": "noise", "noise_std": 0.0}, "noise_std", "positive"),
        ({"diversify": "drop", "drop_ratio": 1.5}, "drop_ratio", "at most 1"),
        ({"attention": "base"}, "attention", "expert="),
        ({"layers": "2-7"}, "layers", "layers 0 to 2"),
        ({"layers": "first"}, "layers", "every:2"),
        ({"layers": "every:0"}, "layers", "not understood"),
        ({"granularty": 4}, "granularty", "Did you mean 'granularity'"),
        ({"experts": "many"}, "experts", "integer"),
        ({"dtype": "int8"}, "dtype", "bfloat16"),
        ({"target": "mixtrall"}, "target", "mixtral"),
    ],
)
def test_refused(options: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan(**options)
    assert caught.value.field == field
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("llama", {"target": "mixtral", "shared": "full"}, "no shared expert"),
        ("llama", {"target": "qwen2_moe"}, "always has a shared expert"),
        ("llama", {"target": "qwen3_moe"}, "norms differ from"),
        ("llama", {"target": "glm4_moe", "shared": 16, "granularity": 4, "top_k": 4, "experts": 8}, ""),
        ("llama", {"target": "glm4_moe", "shared": 20}, "multiple of the expert width 28"),
        ("llama", {"target": "granitemoeshared", "shared": 16, "gates": "independent"}, "always sum to 1"),
        ("llama", {"target": "mixtral", "layers": "1"}, "chosen layers dense"),
        ("llama", {"target": "glm4_moe", "shared": "full", "layers": "0-1"}, "only the first layers"),
        ("llama", {"target": "glm4_moe", "shared": "full", "experts": 1, "top_k": 1}, "at least 2 experts"),
        ("llama_attention_bias", {"target": "mixtral"}, "biases on qkvo"),
        ("llama_mlp_bias", {"target": "mixtral"}, "compute something else|biases"),
        ("mistral_window", {"target": "granitemoeshared"}, "sliding window"),
        ("qwen3_mixed", {"target": "qwen3_moe"}, "mixes windowed"),
        ("qwen3_bias", {"target": "glm4_moe", "shared": "full"}, "biases on qkvo"),
        ("gpt2", {"target": "mixtral"}, "norms differ from"),
        ("phi3_partial", {"target": "mixtral"}, "source rotates 75%"),
        ("olmo_clip", {"target": "mixtral"}, "does not clip"),
        ("olmo3_window", {"target": "flex_olmo"}, "no sliding window"),
        ("olmo3_two_ropes", {"target": "flex_olmo"}, "rotates all layers alike"),
        ("ministral3_long", {"target": "mixtral"}, "after 8 of its 128 tokens"),
        ("seed_oss_out_bias", {"target": "qwen2_moe", "shared": "full"}, "biases on qkvo"),
    ],
)
def test_target_refuses_with_the_nearest(name: str, options: dict[str, Any], says: str) -> None:
    if not says:  # the width fits: 32 routed neurons in 4 shards of 8, shared 16
        assert plan(name, **options).target.name == "glm4_moe"
        return
    with pytest.raises(TargetError, match=says) as caught:
        plan(name, **options)
    assert caught.value.fix
    nearest = caught.value.fix.split("target='")[1].split("'")[0]
    assert plan(name, **{**options, "target": nearest}).target.name == nearest


@pytest.mark.parametrize(
    ("name", "options", "target"),
    [
        ("llama", {}, "mixtral"),
        ("llama", {"shared": "full"}, "granitemoeshared"),
        ("llama", {"layers": "1"}, "generic"),
        ("llama", {"layers": "1", "shared": "full"}, "qwen2_moe"),
        ("llama_attention_bias", {}, "granitemoe"),
        ("llama_mlp_bias", {}, "generic"),
        ("mistral_window", {}, "mixtral"),
        ("mistral_window", {"shared": "full"}, "qwen2_moe"),
        ("qwen2", {}, "granitemoe"),
        ("qwen2", {"shared": "full"}, "qwen2_moe"),
        ("qwen2_window", {"shared": 16}, "qwen2_moe"),
        ("qwen2_window", {}, "generic"),
        ("qwen3", {}, "qwen3_moe"),
        ("qwen3", {"layers": "every:2"}, "qwen3_moe"),
        ("qwen3", {"shared": "full"}, "glm4_moe"),
        ("qwen3_window", {}, "qwen3_moe"),
        ("qwen3_mixed", {}, "mellum"),
        ("olmo2", {}, "flex_olmo"),
        ("olmo2", {"shared": "full"}, "generic"),
        ("gpt2", {}, "generic"),
        ("phi3", {}, "mixtral"),
        ("phi3_tied", {"shared": "full"}, "qwen2_moe"),
        ("phi3_partial", {"shared": "full"}, "glm4_moe"),
        ("helium", {}, "mixtral"),
        ("helium_bias", {"layers": "1", "shared": 16}, "qwen2_moe"),
        ("seed_oss", {}, "granitemoe"),
        ("seed_oss", {"shared": "full"}, "qwen2_moe"),
        ("internlm3", {}, "mixtral"),
        ("glm", {"shared": "full"}, "glm4_moe"),
        ("glm", {}, "generic"),
        ("gemma", {}, "granitemoe"),
        ("olmo", {}, "mixtral"),
        ("olmo_untied", {"shared": "full"}, "granitemoeshared"),
        ("olmo3", {}, "flex_olmo"),
        ("ministral3", {}, "mixtral"),
        ("gemma_untied", {"layers": "1", "shared": "full"}, "qwen2_moe"),
    ],
)
def test_auto_prefers_native(name: str, options: dict[str, Any], target: str) -> None:
    assert plan(name, **options).target.name == target


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("seed_oss", "residual dropout of 0.1"),
        ("gemma", "square root of 32"),
        ("phi3", None),
    ],
)
def test_what_the_class_computes_differently_after_all_is_said(name: str, says: str | None) -> None:
    warnings = " ".join(plan(name, experts=4).warnings)
    assert says in warnings if says else not warnings


@pytest.mark.parametrize("options", [{}, {"diversify": "noise"}], ids=str)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("phi3_long", "Limit: generation that grows past 8 tokens with a KV cache differs"),
        ("cohere", "all layers get a window of 128 tokens"),
        ("gemma3", "divides the residual stream"),
    ],
)
def test_the_claim_states_where_the_result_is_not_equal(name: str, says: str, options: dict[str, Any]) -> None:
    assert says in plan(name, experts=4, **options).claim.reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shared": 18}, "another shared width"),
        ({"granularity": 8, "top_k": 8}, "granularity=1, 2, 3, 4, 6, 12"),
        ({"granularity": 4, "top_k": 4, "dtype": "float16"}, "dtype='float32'"),
    ],
)
def test_widths_that_stock_kernels_cannot_run(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan(**options)
    assert says in str(caught.value.fix)


def test_layers() -> None:
    assert parse_layers("all", 4) == (0, 1, 2, 3)
    assert parse_layers("1-2", 4) == (1, 2)
    assert parse_layers("every:2", 5) == (1, 3)
    assert parse_layers("3,0,0", 4) == (0, 3)


def test_specialists_need_whole_turns() -> None:
    other = str(zoo.folder("llama", seed=1))
    with pytest.raises(RequestError, match="multiple of 3"):
        plan(expert={"a": other, "b": other, "c": other}, experts=8)
    with pytest.raises(RequestError, match="knowledge"):
        plan(expert={"a": other, "b": other}, shared="residual")
    assert plan(expert={"a": other, "b": other}, granularity=2).layout.experts == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [("qwen2", "model_type"), ("llama_head_dim", "head_dim"), ("llama_untied", "tie_word_embeddings|rms_norm_eps")],
)
def test_specialists_must_be_of_the_base(name: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        plan(expert={"a": str(zoo.folder(name)), "b": str(zoo.folder("llama"))})


def test_warnings() -> None:
    assert "zero router" in plan(router="zero").warnings[0]
    assert "no gradient" in plan(top_k=1).warnings[0]
    assert "must differ" in plan(shared="residual").warnings[0]
    assert plan().warnings == ()


def test_specialists_must_have_the_base_s_tokenizer(tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(zoo.folder("llama", seed=1), other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))  # formatted otherwise: still the same
    assert plan(expert={"a": str(other)}, top_k=1).layout.experts == 1
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    (other / "vocab.json").write_text("{}")  # not what is loaded
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat template that the base does not" in plan(expert={"a": str(other)}, top_k=1).warnings[0]
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RequestError, match=r"tokenizer differs from the base's .* merges"):
        plan(expert={"a": str(other)}, top_k=1)
    for path in other.glob("tokenizer*"):
        path.unlink()
    (other / "vocab.json").unlink()
    assert "has no tokenizer" in plan(expert={"a": str(other)}, top_k=1).warnings[0]
