"""An MoE as another class: the same logits from the files as written, and a reason where there can be none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import VOCABULARY, dense_gpt2, edit_tensors, random_moe, save

from smolmoe.errors import TargetError
from smolmoe.moe.loading import load_model
from smolmoe.surgery.experts.moe_files import read_moe
from smolmoe.surgery.experts.writer import write_program
from smolmoe.surgery.export.native import native_export
from smolmoe.surgery.export.native_forms import able, subject_of

WHOLE_HEADS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}}
PLAIN_GRANITE = {
    "attention_multiplier": 8**-0.5,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def made(model_type: str, folder: Path, edit: Any = None, **config: Any) -> Path:
    model = random_moe(model_type, **config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("shared_expert_gate.weight"):
                parameter.zero_()
    save(model, folder, tokenizer=False)
    if edit is not None:
        edit_tensors(folder, edit)
    return folder


def exported(source: Path, to: str, out: Path) -> Path:
    files = read_moe(source)
    program, claim = native_export(files, to)
    assert claim.kind == "exact"
    return write_program(program, files, out, stage="export", made={})


def difference(a: Path, b: Path) -> float:
    ids = torch.randint(VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (load_model(folder)(ids).logits for folder in (a, b))
    return float((one - other).abs().max() / one.abs().max())


def refusal(source: Path, to: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        native_export(read_moe(source), to)
    return caught.value


@pytest.mark.parametrize(
    ("source", "config", "target"),
    [
        ("mixtral", {}, "granitemoe"),
        ("mixtral", {}, "granitemoeshared"),
        ("mixtral", {}, "qwen2_moe"),
        ("mixtral", {"num_experts_per_tok": 1, "sliding_window": None}, "glm4_moe"),
        ("mixtral", {"sliding_window": 8}, "qwen2_moe"),
        ("qwen2_moe", {}, "granitemoeshared"),
        ("qwen2_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}, "generic"),
        ("granitemoeshared", PLAIN_GRANITE, "qwen2_moe"),
        ("granitemoeshared", {**PLAIN_GRANITE, "shared_intermediate_size": 0}, "mixtral"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "generic"),
        ("glm4_moe", {**WHOLE_HEADS, "routed_scaling_factor": 2.5}, "generic"),
        ("flex_olmo", {"norm_topk_prob": False}, "generic"),
    ],
)
def test_the_same_logits_in_another_class(source: str, config: Any, target: str, tmp_path: Path) -> None:
    folder = made(source, tmp_path / "moe", **config)
    out = exported(folder, target, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["model_type"] == {"generic": "smolmoe"}.get(target, target)
    assert difference(folder, out) < 3e-6


def test_biases_of_the_attention_come_along(tmp_path: Path) -> None:
    def draw(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("proj.bias"):
                tensor.normal_(generator=torch.Generator().manual_seed(1))

    folder = made("qwen2_moe", tmp_path / "moe", draw)
    out = exported(folder, "granitemoeshared", tmp_path / "out")  # which has a bias on o_proj, too
    assert difference(folder, out) < 3e-6
    assert "norms differ from qwen2's" in refusal(folder, "mixtral").message


def test_there_and_back_is_the_same_file(tmp_path: Path) -> None:
    folder = made("mixtral", tmp_path / "moe")
    generic = exported(folder, "generic", tmp_path / "generic")
    back = exported(generic, "mixtral", tmp_path / "back")
    one, other = read_moe(folder).checkpoint, read_moe(back).checkpoint
    assert set(one.tensors) == set(other.tensors)
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.tensors)


def test_a_selection_bias_needs_a_place(tmp_path: Path) -> None:
    folder = made("mixtral", tmp_path / "moe", sliding_window=None)

    def draw(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("e_score_correction_bias")]:
            tensors[name] = torch.tensor([0.3, -0.2, 0.0, 0.1])

    generic = exported(folder, "generic", tmp_path / "generic")
    edit_tensors(generic, draw)
    assert "no selection bias, but the source has a non-zero one" in refusal(generic, "mixtral").message
    config = json.loads((generic / "config.json").read_text())
    (generic / "config.json").write_text(json.dumps(config | {"scoring_func": "sigmoid"}))
    assert able(subject_of(read_moe(generic))) == ["glm4_moe"]
    assert difference(generic, exported(generic, "glm4_moe", tmp_path / "glm")) < 3e-6


def test_what_cannot_be_kept_is_refused_with_the_reason_and_what_can(tmp_path: Path) -> None:
    softmax = made("mixtral", tmp_path / "softmax", sliding_window=None)
    error = refusal(softmax, "glm4_moe")
    assert "scores are the sigmoid of the logits, the source uses the softmax" in error.message
    assert error.fix == "These can: granitemoe, granitemoeshared, qwen2_moe, generic."
    assert "norms differ" in refusal(softmax, "qwen3_moe").message
    assert "already has this class" in refusal(softmax, "mixtral").message
    assert "no such class" in refusal(softmax, "mixtrall").message
    windowed = made("mixtral", tmp_path / "windowed", sliding_window=8)
    assert "it has no sliding window" in refusal(windowed, "granitemoeshared").message
    shared = made("granitemoeshared", tmp_path / "shared", **PLAIN_GRANITE)
    assert "it has no shared expert" in refusal(shared, "mixtral").message
    assert "(--" not in refusal(shared, "mixtral").message
    free = made("qwen2_moe", tmp_path / "free", norm_topk_prob=False)
    assert "sum to 1, the source does not" in refusal(free, "granitemoeshared").message
    scaled = made("granitemoeshared", tmp_path / "scaled", **{**PLAIN_GRANITE, "residual_multiplier": 0.5})
    assert "norms differ from granite's" in refusal(scaled, "qwen2_moe").message


def test_a_trained_gate_on_the_shared_expert_stays_where_it_is(tmp_path: Path) -> None:
    def draw(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("shared_expert_gate.weight")]:
            tensors[name].normal_(generator=torch.Generator().manual_seed(2))

    folder = made("qwen2_moe", tmp_path / "moe", draw)
    error = refusal(folder, "granitemoeshared")
    assert "no gate on the shared expert, but the source has a trained one" in error.message
    assert error.fix == "No other class can."


def test_a_scale_that_is_no_power_of_two_rounds_half_precision(tmp_path: Path) -> None:
    """In a class without a setting for it; the gate of a single expert is the scale."""
    one = {"num_experts_per_tok": 1, "first_k_dense_replace": 0}
    model = random_moe("glm4_moe", **WHOLE_HEADS, **one, routed_scaling_factor=2.5)
    folder = save(model.to(torch.bfloat16), tmp_path / "moe", tokenizer=False)
    program, claim = native_export(read_moe(folder), "granitemoeshared")
    assert claim.kind == "rounded"
    assert claim.predicted_ffn_error[1] == pytest.approx(2**-9 / 3**0.5)
    assert {tensor.dtype for tensor in program.tensors} == {"bfloat16"}
    program, claim = native_export(read_moe(folder), "generic")
    assert claim.kind == "exact"
    assert program.config["routed_scaling_factor"] == 2.5


def test_a_model_that_no_native_class_is_like(tmp_path: Path) -> None:
    from smolmoe import upcycle

    dense = save(dense_gpt2(), tmp_path / "dense")
    upcycle(dense, tmp_path / "moe", experts=4, top_k=2, verify="none")
    error = refusal(tmp_path / "moe", "mixtral")
    assert "norms differ from gpt2's" in error.message
    assert error.fix == "No other class can."
