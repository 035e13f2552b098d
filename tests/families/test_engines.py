"""What is known of the engines leads to the choice of a class, and is said for the model at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests import zoo
from tests.helpers import edit_tensors
from tests.surgery.test_request import plan

from smolmoe.core import units
from smolmoe.engines.run import known_against
from smolmoe.errors import RequestError, TargetError
from smolmoe.families import MOE_TARGETS
from smolmoe.families.engines import ENGINES, engine_name, runs_in
from smolmoe.families.table import targets_table
from smolmoe.hub.card import engines
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.recipe import UpcycleRecipe, parse
from smolmoe.surgery.convert import convert


@pytest.mark.parametrize("name", list(MOE_TARGETS))
def test_every_fact_is_of_an_engine_that_is_known(name: str) -> None:
    assert set(MOE_TARGETS[name].engines) <= set(ENGINES) - {"transformers"}
    assert f"`{name}`" in targets_table()


def test_names_as_people_write_them() -> None:
    names = {"vllm": "vLLM", "MLX": "mlx-lm", "mlx-lm": "mlx-lm", "mlx_lm": "mlx-lm", " llama.cpp ": "llama.cpp"}
    names |= dict.fromkeys(("llamacpp", "llama_cpp", "Llama-CPP"), "llama.cpp") | {"SGLANG": "SGLang"}
    assert {name: engine_name(name) for name in names} == names
    for text in ("mlx,vllm", " mlx , vllm,"):
        assert parse(UpcycleRecipe, {"source": "x", "out": "y", "runs_in": text}).runs_in == ("mlx", "vllm")
    assert parse(UpcycleRecipe, {"source": "x", "out": "y", "runs_in": []}).runs_in == ()
    for unknown in ("tgi", "vllm mlx", "2", "-lm"):
        with pytest.raises(RequestError, match="no such engine"):
            plan(runs_in=(unknown,))


@pytest.mark.parametrize(
    ("name", "engines", "target"),
    [
        ("llama", ("vllm", "llama.cpp", "mlx"), "mixtral"),
        ("llama_rope3", ("vllm", "llama.cpp"), "mixtral"),
        ("qwen2", (), "granitemoe"),
        ("qwen2", ("llama.cpp", "mlx"), "granitemoe"),
        ("qwen3", ("llama.cpp",), "qwen3_moe"),
        ("qwen3_mixed", ("vllm",), "mellum"),
        ("smollm3_window", ("vllm",), "generic"),
        ("smollm3", ("vllm",), "granitemoe_swa"),
        ("qwen2", ("vllm",), "generic"),
        ("olmo2", ("vllm",), "flex_olmo"),
    ],
)
def test_the_first_class_that_all_of_them_compute(name: str, engines: tuple[str, ...], target: str) -> None:
    made = plan(name, runs_in=engines)
    assert made.target.name == target
    assert not any(made.runs_in[engine_name(engine)] for engine in engines)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("llama_rope3", {"runs_in": ("mlx",)}, "mixtral: mlx-lm: it does not support rotary scaling of type llama3"),
        ("gpt2", {"runs_in": ("llama.cpp",)}, "generic: llama.cpp: it is not known to run this class"),
        ("llama_gelu", {"runs_in": ("llama.cpp",), "target": "mixtral"}, "mixtral does not run there"),
    ],
)
def test_why_none_does(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(TargetError, match=says) as caught:
        plan(name, **options)
    assert caught.value.field == "runs_in"


def test_what_is_said_of_this_model() -> None:
    assert plan("llama_rope3").runs_in["mlx-lm"] == ["it does not support rotary scaling of type llama3 in this class"]
    assert plan("mistral_window").runs_in["llama.cpp"] == [
        "it ignores this class's sliding window of 8, but the context has 128 tokens"
    ]
    assert plan("llama").runs_in == {engine: [] for engine in ENGINES}


def test_older_keys_stand_beside_the_rotary_parameters(tmp_path: Path) -> None:
    made = plan("llama")
    object.__setattr__(made.recipe, "out", tmp_path / "moe")
    config = json.loads((convert(made) / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None
    assert runs_in(config)["transformers"] == []


@pytest.mark.parametrize(("target", "written"), [("glm4_moe", True), ("granitemoeshared", False)])
def test_a_tied_head_is_written_where_an_engine_ignores_the_tie(target: str, written: bool, tmp_path: Path) -> None:
    made = plan("llama", target=target, shared="full")
    object.__setattr__(made.recipe, "out", tmp_path / "moe")
    tensors = load_file(convert(made) / "model.safetensors")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert ("lm_head.weight" in tensors) is written
    assert config["tie_word_embeddings"] is not written
    said = [warning for warning in made.warnings if "output head" in warning]
    assert bool(said) is written
    if written:
        assert f"{300 * zoo.D:,} more parameters" in said[0]
        assert "vLLM" in said[0]
        assert said[1] == f"The separate output head adds {units.size(4 * 300 * zoo.D)} to the files."


def test_the_generic_model_runs_in_vllm_where_its_experts_are_gated_silu() -> None:
    assert plan("llama", target="generic").runs_in["vLLM"] == []
    assert plan("llama_gelu", target="generic").runs_in["vLLM"] == [
        "its experts use silu, the model uses gelu_pytorch_tanh"
    ]
    assert "its experts have a gate and no biases" in plan("gpt2").runs_in["vLLM"]


def test_an_output_head_of_its_own_may_be_too_much() -> None:
    says = ["its output head is always the embedding, but the model has a separate one"]
    assert plan("lfm2").runs_in["mlx-lm"] == plan("lfm2").runs_in["llama.cpp"] == []
    assert plan("lfm2_untied").runs_in["mlx-lm"] == plan("lfm2_untied").runs_in["llama.cpp"] == says


def test_windows_on_some_layers_alone_may_be_too_much() -> None:
    mixed = plan("qwen2_window", target="qwen2_moe", shared="full").runs_in
    assert any("mixes both" in reason for reason in mixed["vLLM"])
    assert mixed["OpenVINO"] == []


@pytest.mark.parametrize(("top_k", "runs"), [(1, False), (2, True)])
def test_mlx_does_not_renormalise_a_single_gate(top_k: int, runs: bool) -> None:
    """glm4_moe and deepseek_v3: the gate of a single chosen expert stays a sigmoid there, and 1 elsewhere."""
    for name in ("qwen3", "youtu"):
        made = plan(name, experts=4, top_k=top_k, shared="full", **({"target": "glm4_moe"} if name == "qwen3" else {}))
        assert not made.runs_in["mlx-lm"] if runs else "single chosen expert" in " ".join(made.runs_in["mlx-lm"])
        assert not made.runs_in["vLLM"]


@pytest.mark.parametrize(("moved", "matters"), [((0.0, 0.0), False), ((0.5, 0.5), False), ((0.5, 0.0), True)])
def test_a_selection_bias_that_training_moved_counts(moved: tuple[float, float], matters: bool, tmp_path: Path) -> None:
    """vLLM and mlx-lm ignore that of Ernie4_5_Moe; one that is the same for all experts changes nothing."""
    made = plan("ernie4_5", target="ernie4_5_moe")
    object.__setattr__(made.recipe, "out", tmp_path / "moe")

    def move(tensors: dict[str, Any]) -> None:
        for bias in (tensor for name, tensor in tensors.items() if name.endswith("e_score_correction_bias")):
            bias.fill_(moved[0])[0, -1] = moved[1]

    edit_tensors(convert(made), move)
    facts, says = (
        ModelFacts.read(tmp_path / "moe"),
        "it ignores the routers' selection biases, which training has moved",
    )
    assert facts.runs_in["llama.cpp"] == []
    assert facts.runs_in["vLLM"] == facts.runs_in["mlx-lm"] == ([says] if matters else [])
    assert engines(facts)["mlx-lm"] == (f"no: {says}" if matters else "yes")
    assert known_against("mlx", tmp_path / "moe") == tuple(facts.runs_in["mlx-lm"])


def test_engines_that_always_renormalise_do_not_run_independent_gates() -> None:
    half = {"experts": 4, "top_k": 1, "shared": 24, "gates": "independent"}
    glm = plan("llama", **half, router_std=0.1).runs_in
    assert {engine for engine, why in glm.items() if not why} == {"transformers", "vLLM", "llama.cpp", "mlx-lm"}
    assert "always renormalises" in glm["SGLang"][0]
    lfm2 = plan("lfm2", experts=4, gates="independent").runs_in
    assert not lfm2["mlx-lm"]
    assert "always renormalises" in lfm2["llama.cpp"][0]
    assert plan("lfm2", experts=4).runs_in["llama.cpp"] == []
    generic = plan("llama", **half, target="generic").runs_in
    assert "only softmax scores" in generic["vLLM"][0]
