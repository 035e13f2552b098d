"""The proof holds for what is right and, above all, fails for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VOCABULARY, dense_llama, edit_tensors, moe_of, save

from smolmoe.core.claim import Claim
from smolmoe.errors import CheckpointError, DataError, RequestError, SourceError
from smolmoe.verification.checks import judge
from smolmoe.verification.logits import Comparison, before_first_close_call
from smolmoe.verification.verify import Verification, verify

EXACT = {"kind": "exact"}
SMALL: dict[str, Any] = {"sequences": 3, "length": 32, "new_tokens": 5}
Edit = Callable[[dict[str, torch.Tensor]], None]
EXPERT = "model.layers.1.block_sparse_moe.experts.0"


def check(result: Verification, name: str) -> bool:
    return next(check.passed for check in result.checks if check.name == name)


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if not check.passed}


@pytest.mark.parametrize("target", ["mixtral", "granitemoeshared", "qwen2_moe"])
def test_an_exact_moe_passes(target: str, dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama(), target), tmp_path / "moe")
    result = verify(dense, moe, text=text, claim=EXACT, **SMALL)
    assert result.passed, failed(result)
    assert 0 < result.logits.max_abs <= 1e-5 * result.logits.max_logit
    assert result.logits.max_abs == max(result.logits.per_sequence)
    assert result.logits.top1 == 1
    assert abs(result.logits.delta_loss) < 1e-5
    assert 0 <= result.logits.kl < 1e-9
    assert result.decoding.equal
    assert all(error is not None and error < 1e-6 for error in result.ffn_error)
    assert result.control.max_abs > 0.1
    assert len(set(result.lengths)) == len(result.lengths) == 3
    assert result.half is None
    assert json.loads(json.dumps(result.to_json()))["passed"] is True


def test_shards_pass_and_the_claim_is_read_from_the_folder(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama(), top_k=2, granularity=2), tmp_path / "moe")
    (moe / "smolmoe.json").write_text(json.dumps({"claim": {"kind": "exact", "granularity": 2}}))
    result = verify(dense, moe, text=text, **SMALL)
    assert result.claim.kind == "exact"
    assert result.passed, failed(result)
    assert result.incomplete_groups == 0


def test_a_model_larger_than_memory_gives_the_same_numbers(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama(), "granitemoeshared"), tmp_path / "moe")
    whole = verify(dense, moe, text=text, claim=EXACT, **SMALL)
    streamed = verify(dense, moe, text=text, claim=EXACT, **SMALL, resident_bytes=0)
    assert streamed.decoding.new_tokens == 4
    assert streamed.passed
    assert streamed.logits == whole.logits
    assert streamed.ffn_error == whole.ffn_error
    assert streamed.control == whole.control


def _swap_gate_and_up(tensors: dict[str, torch.Tensor]) -> None:
    gate, up = tensors[f"{EXPERT}.w1.weight"], tensors[f"{EXPERT}.w3.weight"]
    tensors[f"{EXPERT}.w1.weight"], tensors[f"{EXPERT}.w3.weight"] = up, gate


def _scale_one_down(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{EXPERT}.w2.weight"] = tensors[f"{EXPERT}.w2.weight"] * 1.001


def _one_wrong_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{EXPERT}.w1.weight"][7] *= -1


def _transposed_attention(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


def _not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{EXPERT}.w2.weight"][0, 0] = float("nan")


@pytest.mark.parametrize("edit", [_swap_gate_and_up, _scale_one_down, _one_wrong_row, _transposed_attention])
def test_a_wrong_tensor_fails(edit: Edit, dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama(), experts=2), tmp_path / "moe")
    edit_tensors(moe, edit)
    result = verify(dense, moe, text=text, claim=EXACT, **SMALL)
    assert {"logits", "padding", "cache"} <= failed(result)
    if edit is not _transposed_attention:
        assert result.ffn_error[0] < 1e-6 < 1e-5 < result.ffn_error[1]


def test_a_nan_fails_and_can_be_written_as_json(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama(), experts=2), tmp_path / "moe")
    edit_tensors(moe, _not_a_number)
    result = verify(dense, moe, text=text, **SMALL)
    assert not check(result, "finite")
    assert result.logits.max_abs == float("inf")
    assert json.dumps(result.to_json(), allow_nan=False)


def test_without_a_claim_a_wrong_moe_is_only_measured(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama(), experts=2), tmp_path / "moe")
    edit_tensors(moe, _swap_gate_and_up)
    result = verify(dense, moe, text=text, **SMALL)
    assert result.claim.kind == "none"
    assert result.passed
    assert result.logits.max_abs > 1e-3
    assert result.logits.kl > 0


def test_a_mask_that_does_not_reach_the_attention_fails(
    dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral import modeling_mixtral

    real = modeling_mixtral.create_causal_mask
    # without positions either: from them transformers would guess where the padding ends
    lost = {"attention_mask": None, "position_ids": None}
    monkeypatch.setattr(modeling_mixtral, "create_causal_mask", lambda **options: real(**{**options, **lost}))
    moe = save(moe_of(dense_llama()), tmp_path / "moe")
    result = verify(dense, moe, text=text, claim=EXACT, **SMALL)
    assert {"padding", "padding (itself)"} <= failed(result)
    assert check(result, "logits")


def test_positions_that_forget_the_cache_fail(
    dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralModel

    real = MixtralModel.forward

    def forward(self: Any, *args: Any, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None and options["input_ids"].shape[1] == 1:
            position_ids = torch.zeros_like(position_ids)
        return real(self, *args, position_ids=position_ids, **options)

    monkeypatch.setattr(MixtralModel, "forward", forward)
    moe = save(moe_of(dense_llama()), tmp_path / "moe")
    result = verify(dense, moe, text=text, claim=EXACT, **SMALL)
    assert {"cache", "cache (itself)"} <= failed(result)
    assert check(result, "logits")


def test_another_tokenizer_fails(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama()), tmp_path / "moe")
    tokenizer = json.loads((moe / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (moe / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert failed(verify(dense, moe, text=text, claim=EXACT, **SMALL)) == {"tokenizer"}
    for file in moe.glob("tokenizer*"):
        file.unlink()
    assert failed(verify(dense, moe, text=text, claim=EXACT, **SMALL)) == {"tokenizer"}


def test_experts_that_do_not_matter_fail_the_control(text: Path, tmp_path: Path) -> None:
    model = dense_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
    dense, moe = save(model, tmp_path / "dense"), save(moe_of(model), tmp_path / "moe")
    assert failed(verify(dense, moe, text=text, claim=EXACT, **SMALL)) == {"control"}


def test_an_moe_may_be_the_reference(text: Path, tmp_path: Path) -> None:
    """Its FFN has two parts, on either side of the comparison."""
    moe = save(moe_of(dense_llama(), "granitemoeshared"), tmp_path / "moe")
    result = verify(moe, moe, text=text, **SMALL)
    assert max(error or 0 for error in result.ffn_error) < 1e-6


# 16 bits


def test_bfloat16_is_compared_with_the_rounded_dense_model(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama()).to(torch.bfloat16), tmp_path / "moe")
    result = verify(dense, moe, text=text, claim=EXACT, **SMALL)
    assert result.passed, failed(result)
    assert result.dtype == "bfloat16"
    assert "rounded" in result.reference
    assert result.half is not None
    assert result.half.noise_mean_abs > 0
    assert result.half.mean_abs <= 3 * result.half.noise_mean_abs
    assert result.half.incomplete_groups is None
    # stored in bfloat16 both are the same to begin with
    stored = save(dense_llama().to(torch.bfloat16), tmp_path / "dense16")
    same = verify(stored, moe, text=text, claim=EXACT, **SMALL)
    assert same.reference == "the dense model"
    assert same.logits == result.logits


def test_groups_that_tie_in_16_bits_are_counted(dense: Path, text: Path, tmp_path: Path) -> None:
    model = moe_of(dense_llama(), experts=8, granularity=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight[2:] = layer.mlp.gate.weight[:2].repeat(3, 1)
            layer.mlp.gate.weight[::2] += 1e-7 * torch.randn_like(layer.mlp.gate.weight[::2])
    moe = save(model.to(torch.bfloat16), tmp_path / "moe")
    result = verify(dense, moe, text=text, claim={"kind": "none", "granularity": 2}, **SMALL)
    assert result.half is not None
    assert result.half.incomplete_groups is not None
    assert 0 <= result.half.incomplete_groups <= 1


# Claims about FFN errors


def noisy(tmp_path: Path) -> Path:
    model = moe_of(dense_llama())
    torch.manual_seed(5)
    with torch.no_grad():
        down = model.model.layers[1].mlp.experts.down_proj
        down += 0.1 * torch.randn_like(down)
    return save(model, tmp_path / "moe")


def test_a_predicted_deviation_is_held_against_each_layer(dense: Path, text: Path, tmp_path: Path) -> None:
    result = verify(dense, noisy(tmp_path), text=text, **SMALL)
    assert result.ffn_error[0] < 1e-6
    right = result.ffn_error[1]
    assert right > 0.05

    def outcome(kind: str, *predicted: float | None) -> set[str]:
        claim = Claim(kind, predicted_ffn_error=predicted)
        found = result.model_copy(update={"claim": claim, "half": None})
        checks = judge(found, finite=True, not_finite={}, same_tokens=True)
        return {check.name for check in checks if not check.passed}

    assert outcome("deviates", 0.0, right * 1.2) == set()
    assert outcome("deviates", None, right) == set()
    assert outcome("deviates", None, right * 1.5) == {"FFN error, layer 1"}
    assert outcome("deviates", None, right / 1.5) == {"FFN error, layer 1"}
    assert outcome("deviates", right, right) == {"FFN error, layer 0"}
    assert outcome("rounded", 1e-3, right * 0.6) == set()
    assert outcome("rounded", 1e-3, right * 0.4) == {"FFN error, layer 1"}
    assert outcome("deviates", right) == {"FFN errors"}
    assert outcome("deviates") == set()
    claim = {"kind": "deviates", "predicted_ffn_error": [None, right / 2]}
    assert failed(verify(dense, tmp_path / "moe", text=text, claim=claim, **SMALL)) == {"FFN error, layer 1"}


def test_ffn_errors_are_measured_on_the_dense_models_inputs(dense: Path, text: Path, tmp_path: Path) -> None:
    """An error in layer 0 shifts layer 1's own inputs, but not the inputs it is judged on."""
    model = moe_of(dense_llama())
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj *= 2
    result = verify(dense, save(model, tmp_path / "moe"), text=text, **SMALL)
    assert result.ffn_error[0] == pytest.approx(1.0, abs=1e-5)
    assert result.ffn_error[1] < 1e-6


# Input that cannot be measured


def test_models_that_do_not_belong_together_are_refused(dense: Path, text: Path, tmp_path: Path) -> None:
    other = save(dense_llama(hidden_size=40), tmp_path / "other")
    moe = save(moe_of(dense_llama()), tmp_path / "moe")
    with pytest.raises(SourceError, match="hidden_size"):
        verify(other, moe, text=text, **SMALL)
    with pytest.raises(SourceError, match="dense"):
        verify(dense, dense, text=text, **SMALL)
    with pytest.raises(SourceError, match="no such model folder"):
        verify(dense, tmp_path / "nowhere", text=text, **SMALL)


def test_bad_requests_are_refused(dense: Path, text: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama()), tmp_path / "moe")
    for options, field in (
        ({"sequences": 0}, "sequences"),
        ({"length": 2}, "length"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"new_tokens": 127}, "length"),
    ):
        with pytest.raises(RequestError) as caught:
            verify(dense, moe, text=text, **{**SMALL, **options})
        assert caught.value.field == field
    with pytest.raises(DataError):
        verify(dense, moe, text=tmp_path / "nothing.txt", **SMALL)
    with pytest.raises(CheckpointError, match="exact, rounded"):
        verify(dense, moe, text=text, claim={"kind": "perfect"}, **SMALL)
    (moe / "smolmoe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"smolmoe\.json"):
        verify(dense, moe, text=text, **SMALL)


def test_without_a_tokenizer_tokens_are_random_and_default_text_needs_no_file(tmp_path: Path) -> None:
    bare = save(dense_llama(), tmp_path / "dense", tokenizer=False)
    moe = save(moe_of(dense_llama()), tmp_path / "moe", tokenizer=False)
    result = verify(bare, moe, claim=EXACT, **SMALL)
    assert result.passed
    assert "random" in result.text
    assert len(set(result.lengths)) == 3


def test_text_of_this_python_installation_is_the_default(dense: Path, tmp_path: Path) -> None:
    moe = save(moe_of(dense_llama()), tmp_path / "moe")
    result = verify(dense, moe, claim=EXACT, sequences=2, length=24, new_tokens=2)
    assert result.passed
    assert "Python" in result.text


# The comparisons themselves


def test_comparison_against_formulas_written_out() -> None:
    torch.manual_seed(0)
    a, b, ids = torch.randn(7, VOCABULARY), torch.randn(7, VOCABULARY), torch.randint(VOCABULARY, (7,))
    comparison = Comparison()
    comparison.add(a, b, ids)
    comparison.add(a[:3], a[:3], ids[:3])
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    assert comparison.kl == pytest.approx((p * (p / q).log()).sum().item() / 10)
    assert comparison.max_abs == (a - b).abs().max()
    assert comparison.per_sequence == [(a - b).abs().max(), 0.0]
    assert comparison.mean_abs == pytest.approx((a - b).abs().sum().item() / (10 * VOCABULARY))
    losses = [-q[t].log()[ids[t + 1]].item() for t in range(6)] + [-p[t].log()[ids[t + 1]].item() for t in range(2)]
    assert comparison.loss == pytest.approx(sum(losses) / 8, rel=1e-5)
    agree = [a[t].argmax() == b[t].argmax() for t in range(7)]
    assert comparison.top1 == (sum(map(int, agree)) + 3) / 10


def test_only_close_calls_are_excused() -> None:
    from smolmoe.moe.routing import Routing

    def routing(scores: list[list[float]]) -> Routing:
        values = torch.tensor(scores)
        top = values.topk(1)
        return Routing(values, torch.ones_like(top.values), top.indices, values)

    base = routing([[1.0, 0.0], [1.0, 0.99999], [1.0, 0.0]])
    flipped = routing([[1.0, 0.0], [0.99999, 1.0], [1.0, 0.0]])
    assert before_first_close_call([base], [flipped]).tolist() == [True, False, False]
    assert before_first_close_call([base], [base]).tolist() == [True, True, True]
    gross = routing([[0.0, 1.0], [1.0, 0.99999], [1.0, 0.0]])
    assert before_first_close_call([base], [gross]).tolist() == [True, True, True]
