"""What makes a training step cheap, and that it stays the same step."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MOE_CONFIGS, VOCABULARY, dense_gpt2, dense_llama, random_moe
from tests.training.runs import moe_folder, recipe, rows, trainer
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteMoeConfig, GraniteMoeForCausalLM

from smolmoe.moe.routing import find_routers
from smolmoe.training import trainer as trainer_module
from smolmoe.training.chunked_loss import head_loss
from smolmoe.training.replay import remember_choices
from smolmoe.training.run import train

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}


def batch(rows: int = 2, length: int = 12, ignored: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (rows, length))
    labels = ids.clone()
    labels[:, :ignored] = -100
    return {"input_ids": ids, "labels": labels}


def granite(**config: Any) -> Any:
    torch.manual_seed(0)
    values = {**SMALL, "num_local_experts": 4, "logits_scaling": 7.3, "initializer_range": 0.2}
    return GraniteMoeForCausalLM(GraniteMoeConfig(**values, **config))


MODELS: dict[str, Any] = {
    "dense, tied": dense_llama,
    "dense, untied": lambda: dense_llama(tie_word_embeddings=False),
    "gpt2": dense_gpt2,
    "scaled logits": granite,
    **{kind: lambda kind=kind: random_moe(kind) for kind in MOE_CONFIGS},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_parts_is_the_models_own(name: str) -> None:
    model = MODELS[name]().eval()  # without dropout
    inputs = batch(ignored=3)
    for items in (None, torch.tensor(7)):
        expected, wanted = gradients(model, inputs, items)
        found = head_loss(model)
        assert found is not None
        with found.applied():
            loss, got = gradients(model, inputs, items)
        assert loss == pytest.approx(expected, rel=1e-5)
        for key, grad in wanted.items():
            torch.testing.assert_close(got[key], grad, rtol=1e-4, atol=1e-6, msg=key)
    assert not model.training
    assert model(**inputs).logits.shape[-1] == VOCABULARY  # its head is its own again


def gradients(model: Any, inputs: dict[str, torch.Tensor], items: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs, num_items_in_batch=items).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_model_that_bends_or_moves_its_logits_keeps_its_own_loss() -> None:
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, initializer_range=0.2))
    assert head_loss(capped) is None
    scaled = granite(tie_word_embeddings=False)
    scaled.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))  # the bias would have to be scaled, too
    assert head_loss(scaled) is None
    adapted = dense_llama(tie_word_embeddings=False)
    torch.nn.utils.parametrizations.weight_norm(adapted.lm_head)
    assert head_loss(adapted) is None


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_with_it_is_the_run_without(tmp_path: Path, monkeypatch: Any, accumulated: int) -> None:
    folder = moe_folder(tmp_path / "moe")
    options = trainer(gradient_accumulation_steps=accumulated, per_device_train_batch_size=4 // accumulated, bf16=False)
    values = recipe(tmp_path, folder, objective={"load_balance": 0.01}, trainer=options)
    ours = rows(train(values).out, "step")
    monkeypatch.setattr(trainer_module, "head_loss", lambda model: None)
    stock = rows(train({**values, "out": str(tmp_path / "stock")}).out, "step")
    assert [row["ce"] for row in ours] == pytest.approx([row["ce"] for row in stock], rel=1e-4)


@pytest.mark.parametrize(("asked", "expected"), [(None, "smolmoe"), ("eager", "eager"), ("grouped_mm", "grouped_mm")])
def test_experts_are_ours_on_a_cpu_but_where_others_are_asked(tmp_path: Path, asked: str | None, expected: str) -> None:
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.models import build_model, find_tokenizer

    folder = moe_folder(tmp_path / "moe")
    parsed = parse(TrainRecipe, recipe(tmp_path, folder) | {"model": {"path": str(folder), "experts": asked}})
    model = build_model(parsed, find_tokenizer(parsed, folder), folder)
    assert model.config._experts_implementation == expected
    assert "experts_implementation" not in model.config.to_json_string()


# -- gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe", "granitemoeshared"])
@pytest.mark.parametrize("remembers", [True, False])
def test_recomputation_takes_the_experts_of_the_first_pass(kind: str, remembers: bool) -> None:
    """The routers are turned round between the passes, so that all would choose otherwise."""
    model = random_moe(kind).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    if remembers:
        remember_choices(model)
    seen: list[torch.Tensor] = []
    for module in model.modules():
        if hasattr(module, "gate_up_proj") and hasattr(module, "has_gate"):
            module.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    loss = model(**batch()).loss
    first = len(seen)
    for _, router in find_routers(model):
        router.weight.data.neg_()
    for _ in range(2):  # a graph that is kept is recomputed twice
        loss.backward(retain_graph=True)
    assert len(seen) == 3 * first
    again = [index for part in (seen[first : 2 * first], seen[2 * first :]) for index in reversed(part)]
    same = all(torch.equal(a, b) for a, b in zip(seen[:first] * 2, again, strict=True))
    assert same == remembers


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe"])
def test_remembering_changes_no_gradient(kind: str) -> None:
    model = random_moe(kind).train()
    _, expected = gradients(model, batch(), None)
    model.activation_checkpointing_enable({"use_reentrant": False})
    remember_choices(model)
    _, kept = gradients(model, batch(), None)
    for name, grad in expected.items():
        torch.testing.assert_close(kept[name], grad, rtol=1e-5, atol=1e-7, msg=name)


# -- experts without tokens ------------------------------------------------------------------------------------------


def adam(gradients: list[float], beta2: float = 0.95, weight_decay: float = 0.0) -> list[float]:
    """What an expert of a stack has moved by after each step, in units of the learning rate; the other gets tokens."""
    rate = 3e-4
    weight = torch.nn.Parameter(torch.ones(2, 4, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], rate, (0.9, beta2), weight_decay=weight_decay, fused=True)
    found = []
    for gradient in gradients:
        weight.grad = torch.stack([torch.full((4,), 0.5), torch.full((4,), gradient)]).double()
        optimizer.step()
        found.append((1 - weight.detach()[1, 0].item()) / rate)
    return found


def test_an_expert_without_tokens_glides_to_a_halt() -> None:
    moved = adam([0.5] * 10 + [0.0] * 100)
    assert moved[9] == pytest.approx(10, rel=1e-3)
    assert moved[-1] - moved[9] == pytest.approx(12, abs=0.5)
    assert moved[-1] - moved[49] < 0.6


def test_an_expert_without_tokens_decays_with_the_others() -> None:
    decayed = adam([0.0] * 100, weight_decay=0.1)
    assert decayed[-1] == pytest.approx(100 * 0.1, rel=0.01)


@pytest.mark.parametrize(("beta2", "least", "most"), [(0.95, 0.4, 0.5), (0.999, 2.5, 3.5)])
def test_the_first_step_of_an_expert_that_comes_back(beta2: float, least: float, most: float) -> None:
    """It is no longer than others with the beta2 that is our default. With torch's it is three times as long."""
    moved = adam([0.0] * 3000 + [0.5], beta2)
    assert least < moved[-1] - moved[-2] < most


# -- memory ----------------------------------------------------------------------------------------------------------


MEMORY = """
import json, resource
import torch
from smolmoe.core.allocator import kept_memory

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def faults(numbers=2**24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(numbers)[: 2**24].fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
before = held()
with kept_memory():
    kept = [faults() for _ in range(20)]
    during = held() - before
after = held() - before
below = torch.empty(2**29)
below[: 2**24].fill_(1)
above = torch.empty(2**29)
del below
print(json.dumps([first, kept, during, after, [faults(2**28) for _ in range(5)]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_used_again_while_training_and_given_back_afterwards() -> None:
    """Afterwards the pages are gone, and large blocks are the kernel's again. One that fits a hole in the heap is not.

    Such holes come and go: the splinters of aligned blocks keep the first seven of a size from being joined again.
    So what is asked for last is larger than everything before it together, and has something above it.
    """
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    first, kept, during, after, large = json.loads(done.stdout)
    pages = 2**26 // resource.getpagesize()
    if first < pages / 2:
        pytest.skip("the system gives large pages: faults are few either way")
    assert max(kept[10:]) < pages / 10
    assert during > pages / 2
    assert after < pages / 10
    assert min(large) > pages / 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process has mapped")
def test_the_file_of_the_model_that_is_trained_is_let_go(tmp_path: Path) -> None:
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.models import build_model, find_tokenizer

    folder = moe_folder(tmp_path / "moe")
    parsed = parse(TrainRecipe, recipe(tmp_path, folder))
    model = build_model(parsed, find_tokenizer(parsed, folder), folder)
    gc.collect()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert next(model.parameters()).requires_grad
