"""Each illness gives its finding, and a healthy model gives none of the others'."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MOE_CONFIGS, dense_llama, edit_tensors, moe_of, random_moe, save

from smolmoe.errors import DataError, SourceError
from smolmoe.moe.routing import RoutingCapture, expert_load
from smolmoe.verification.diagnostics import take_vitals
from smolmoe.verification.doctor import Diagnosis, diagnose, doctor
from smolmoe.verification.logits import next_token_losses

HARMLESS = {"aux-off", "no-aux-loss", "unreached", "small-sample"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(f"def g_{n}(b): return b * {n}  # the product, mind you" for n in range(40)))
    return file


@pytest.fixture
def examine(text: Path, tmp_path: Path) -> Callable[..., Diagnosis]:
    def run(model: Any, *, granularity: int = 1, edit: Any = None) -> Diagnosis:
        folder = save(model, tmp_path / "moe")
        if edit is not None:
            edit_tensors(folder, edit)
        (folder / "smolmoe.json").write_text(json.dumps({"claim": {"granularity": granularity}}))
        return doctor(folder, data=text, sequences=4, length=64)

    return run


WITHOUT_AUX_LOSS = ("beam", "cohere2_moe", "deepseek_v3", "glm4_moe", "hunyuan_v1_moe", "lfm2_moe")


def codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings}


@pytest.mark.parametrize("kind", MOE_CONFIGS)
def test_different_experts_under_a_random_router_are_healthy(kind: str, examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(random_moe(kind))
    assert codes(diagnosis) <= HARMLESS, diagnosis.findings
    assert ("no-aux-loss" in codes(diagnosis)) == (kind in WITHOUT_AUX_LOSS)
    assert all(layer.router_gradient > 1e-4 * layer.expert_gradient for layer in diagnosis.vitals.layers)
    assert all(layer.distinct == layer.experts == 4 for layer in diagnosis.vitals.layers)
    assert diagnosis.worst != "error"
    assert json.dumps(diagnosis.to_json(), allow_nan=False)


def test_the_generic_model_can_be_examined(examine: Callable[..., Diagnosis]) -> None:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    torch.manual_seed(0)
    config = SmolMoeConfig(text_config=dense_llama().config.to_dict(), num_experts=4, moe_layers=[1])
    diagnosis = examine(SmolMoeForCausalLM(config))
    assert codes(diagnosis) <= HARMLESS, diagnosis.findings
    assert [layer.layer for layer in diagnosis.vitals.layers] == [1]


def test_copies_under_a_random_router_part_at_the_first_step(examine: Callable[..., Diagnosis]) -> None:
    model = moe_of(dense_llama())
    diagnosis = examine(model)
    assert codes(diagnosis) - HARMLESS == {"copies"}
    assert diagnosis.worst in ("info", "warning")
    assert all(layer.distinct == 1 for layer in diagnosis.vitals.layers)
    assert all(layer.router_gradient < 1e-6 * layer.expert_gradient for layer in diagnosis.vitals.layers)
    # which is what the finding promises
    ids = torch.arange(4, 60)[None]
    model(ids, labels=ids).loss.backward()
    gradient = model.model.layers[0].mlp.experts.down_proj.grad
    assert not torch.equal(gradient[0], gradient[1])


def test_copies_with_independent_gates_teach_the_router(examine: Callable[..., Diagnosis]) -> None:
    model = random_moe("glm4_moe", norm_topk_prob=False, num_experts_per_tok=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.copy_(parameter[:1].expand_as(parameter))
    diagnosis = examine(model)
    assert "scaled-copies" in codes(diagnosis)
    assert not codes(diagnosis) & {"copies", "top-1", "router-gradient"}


def test_copies_under_a_zero_router_are_an_error(examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(moe_of(dense_llama(), router_std=0.0))
    finding = diagnosis.findings[0]
    assert (finding.code, finding.severity, finding.layers) == ("zero-router", "error", (0, 1))
    assert "2 of 4" in finding.message
    assert codes(diagnosis) <= {"zero-router", "aux-off"}
    assert all(len(layer.unreached) == 2 and layer.tied == 1 for layer in diagnosis.vitals.layers)


def test_different_experts_under_a_zero_router_are_a_warning(examine: Callable[..., Diagnosis]) -> None:
    model = random_moe("mixtral")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight.zero_()
    diagnosis = examine(model)
    tied = next(finding for finding in diagnosis.findings if finding.code == "tied-router")
    assert (tied.severity, tied.layers) == ("warning", (1,))


def test_top_1_with_renormalised_gates_is_an_error(examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(random_moe("mixtral", num_experts_per_tok=1))
    finding = diagnosis.findings[0]
    assert (finding.code, finding.severity, finding.layers) == ("top-1", "error", (0, 1))
    assert examine(moe_of(dense_llama(), "granitemoeshared", top_k=1)).findings[0].code == "top-1"


def test_top_1_with_a_signal_of_the_routers_own_is_not(examine: Callable[..., Diagnosis]) -> None:
    diagnosis = examine(random_moe("mixtral", num_experts_per_tok=1, output_router_logits=True))
    assert "top-1-balanced" in codes(diagnosis)
    assert "top-1" not in codes(diagnosis)
    healthy = examine(random_moe("qwen2_moe", num_experts_per_tok=1, norm_topk_prob=False))
    assert codes(healthy) <= HARMLESS


def test_shards_are_no_copies(examine: Callable[..., Diagnosis]) -> None:
    model = moe_of(dense_llama(), experts=8, granularity=2)
    assert codes(examine(model, granularity=2)) - HARMLESS == {"shards"}
    assert codes(examine(model)) - HARMLESS == {"some-copies"}
    zero = moe_of(dense_llama(), experts=8, granularity=2, router_std=0.0)
    assert examine(zero, granularity=2).findings[0].code == "zero-router"


def test_groups_that_are_split_are_ties(examine: Callable[..., Diagnosis]) -> None:
    """Top-k is no multiple of the granularity, so one of two equal rows is left out."""
    diagnosis = examine(moe_of(dense_llama(), experts=8, granularity=4, top_k=2), granularity=4)
    assert next(finding for finding in diagnosis.findings if finding.code == "ties").severity == "warning"


def test_a_residual_start_is_information(examine: Callable[..., Diagnosis]) -> None:
    def silence(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "experts" in name and "down_proj" in name and "shared" not in name:
                tensors[name].zero_()

    diagnosis = examine(random_moe("qwen2_moe"), edit=silence)
    assert codes(diagnosis) - HARMLESS == {"silent-experts"}
    assert diagnosis.vitals.layers[0].router_gradient == 0.0
    assert diagnosis.vitals.layers[0].expert_gradient > 0


def test_a_detached_router_is_an_error(examine: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

    real = MixtralTopKRouter.forward

    def forward(self: Any, hidden_states: torch.Tensor) -> Any:
        logits, weights, indices = real(self, hidden_states)
        return logits, weights.detach(), indices

    monkeypatch.setattr(MixtralTopKRouter, "forward", forward)
    diagnosis = examine(random_moe("mixtral"))
    assert diagnosis.findings[0].code == "router-gradient"
    assert "aux-detached" not in codes(diagnosis)


def test_a_detached_auxiliary_loss_is_an_error(
    examine: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral import modeling_mixtral

    real = modeling_mixtral.load_balancing_loss_func
    monkeypatch.setattr(modeling_mixtral, "load_balancing_loss_func", lambda *args: real(*args).detach())
    assert examine(random_moe("mixtral")).findings[0].code == "aux-detached"


def test_an_auxiliary_loss_in_the_config_is_fine(examine: Callable[..., Diagnosis]) -> None:
    assert codes(examine(random_moe("mixtral", output_router_logits=True))) <= {"unreached"}


def test_experts_that_no_token_reaches(examine: Callable[..., Diagnosis]) -> None:
    model = random_moe("glm4_moe")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.e_score_correction_bias[2] = -10
    diagnosis = examine(model)
    finding = next(finding for finding in diagnosis.findings if finding.code == "unreached")
    assert finding.severity == "warning"
    assert finding.layers == (1,)
    assert "expert 2 of layer 1" in finding.message
    assert diagnosis.vitals.layers[0].load[2] == 0


def test_padding_counts_neither_in_loads_nor_in_gradients() -> None:
    model = random_moe("mixtral")
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(5, 300, (length,), generator=generator) for length in (12, 30)]
    vitals = take_vitals(model, sequences, "cpu")
    with RoutingCapture(model) as capture:
        losses = [next_token_losses(model(ids[None]).logits[0], ids) for ids in sequences]
    torch.cat(losses).mean().backward()
    for layer in vitals.layers:
        assert layer.load == pytest.approx(expert_load(capture.routing(layer.layer)).tolist(), abs=1e-6)
        router = model.model.layers[layer.layer].mlp.gate.weight
        assert layer.router_gradient == pytest.approx(router.grad.norm().item(), rel=1e-4)


def test_few_tokens_prove_no_expert_dead(examine: Callable[..., Diagnosis]) -> None:
    vitals = examine(random_moe("mixtral")).vitals
    layer = dataclasses.replace(vitals.layers[0], unreached=(3,))
    few = diagnose(dataclasses.replace(vitals, layers=(layer,), tokens=20))
    assert {finding.code for finding in few} - {"aux-off"} == {"small-sample"}


def test_a_model_that_sees_the_future_is_an_error(
    examine: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral import modeling_mixtral

    def all_see_all(inputs_embeds: torch.Tensor, attention_mask: Any = None, **_: Any) -> torch.Tensor:
        batch, length, _ = inputs_embeds.shape
        mask = torch.ones(batch, 1, length, length, dtype=torch.bool)
        return mask if attention_mask is None else mask & attention_mask[:, None, None].bool()

    monkeypatch.setattr(modeling_mixtral, "create_causal_mask", all_see_all)
    diagnosis = examine(random_moe("mixtral"))
    errors = {finding.code for finding in diagnosis.findings if finding.severity == "error"}
    assert errors == {"causality"}


def test_padding_that_is_attended_to_is_an_error(
    examine: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral import modeling_mixtral

    real = modeling_mixtral.create_causal_mask
    lost = {"attention_mask": None, "position_ids": None}
    monkeypatch.setattr(modeling_mixtral, "create_causal_mask", lambda **options: real(**{**options, **lost}))
    diagnosis = examine(random_moe("mixtral"))
    assert {finding.code for finding in diagnosis.findings if finding.severity == "error"} == {"padding"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_the_only_finding(value: float, examine: Callable[..., Diagnosis]) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"][0, 0] = value

    diagnosis = examine(random_moe("mixtral"), edit=spoil)
    assert codes(diagnosis) == {"not-finite"}
    named = "model.layers.1.block_sparse_moe.experts.2.w1.weight (1 of its 1,536 values in model.safetensors are"
    assert named in diagnosis.findings[0].message
    assert diagnosis.worst == "error"
    assert json.dumps(diagnosis.to_json(), allow_nan=False)


def test_findings_come_with_the_worst_first(examine: Callable[..., Diagnosis]) -> None:
    findings = examine(moe_of(dense_llama(), top_k=1)).findings
    order = ["error", "warning", "info"]
    severities = [order.index(finding.severity) for finding in findings]
    assert severities == sorted(severities)
    assert {0, 2} <= set(severities)
    assert all(finding.meaning and finding.remedy for finding in findings)


def test_a_dense_model_and_missing_data_are_refused(tmp_path: Path) -> None:
    dense = save(dense_llama(), tmp_path / "dense")
    with pytest.raises(SourceError, match="dense"):
        doctor(dense)
    moe = save(random_moe("mixtral"), tmp_path / "moe")
    with pytest.raises(DataError):
        doctor(moe, data=tmp_path / "nothing.jsonl")
