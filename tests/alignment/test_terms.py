"""The router terms over TRL's trainers: what they add to the loss, of which tokens, and in which passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from helpers import dense_llama, tiny_tokenizer
from tests.alignment.runs import METHODS, moe_folder, recipe, trainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from smolmoe.alignment.arguments import trainer_arguments
from smolmoe.alignment.examples import Example
from smolmoe.alignment.libraries import quiet
from smolmoe.alignment.lora import lora_config
from smolmoe.alignment.routed_trainers import make_trainer
from smolmoe.alignment.tokens import Row, tokenised
from smolmoe.moe.loading import load_model
from smolmoe.moe.losses import load_balance
from smolmoe.recipe import parse
from smolmoe.recipe.align import AlignRecipe

PAIRS = [
    ("the sum of\n", "three and four", "seven"),
    ("everyone can\n", "see", "return the sum of three and four, as everyone can see"),
    ("def\n", "add(a, b): return", "the"),
    ("is seven the sum of three and four?\n", "yes", "no, as everyone can see"),
]
WEIGHT = 0.5


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_folder(tmp_path_factory.mktemp("moe") / "moe")


def pairs(method: str) -> list[Row]:
    examples = [Example(p, c, None if method == "sft" else r, p) for p, c, r in PAIRS]
    return tokenised(examples, tiny_tokenizer(), 64)[0]


def build(folder: Path, model: Any, method: str, *, reference: Any = None, **changes: Any) -> Any:
    """A trainer of ours on the four pairs, and the batch of all of them."""
    values = parse(AlignRecipe, recipe(folder, Path("unused"), method, **{"trainer": trainer(bf16=False), **changes}))
    adapters = None
    if values.lora is not None:
        adapters = lora_config(values.lora, model, train_routers=values.router != "frozen")
    made = make_trainer(
        values,
        pairs(method),
        model=model,
        reference=reference,
        tokenizer=tiny_tokenizer(),
        arguments=trainer_arguments(values, length=64, save_steps=1),
        adapters=adapters,
    )
    made.gradients_every = 0
    made.current_gradient_accumulation_steps = 1  # as in the loop
    made.model.train()
    return made


def batch(made: Any) -> dict[str, Any]:
    return made.data_collator([made.train_dataset[index] for index in range(4)])


def stock(folder: Path, model: Any, method: str, reference: Any) -> Any:
    """TRL's own trainer on the same pairs, from their text."""
    names = ("prompt", "completion") if method == "sft" else ("prompt", "chosen", "rejected")
    rows = Dataset.from_list([dict(zip(names, pair, strict=False)) for pair in PAIRS])
    kind, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "cpo": (CPOTrainer, CPOConfig),
    }[method]
    off = {} if method == "cpo" else {"router_aux_loss_coef": 0.0}
    beta = {} if method == "sft" else {"beta": 0.05}
    arguments = config(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        activation_checkpointing=False,
        **off,
        **beta,
    )
    extra = {"ref_model": reference} if method == "dpo" else {}
    made = kind(model=model, args=arguments, train_dataset=rows, processing_class=tiny_tokenizer(), **extra)
    made.model.train()
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_moe", [True, False], ids=["moe", "dense"])
def test_without_terms_the_loss_is_trls(tmp_path: Path, moe: Path, method: str, is_moe: bool) -> None:
    def fresh(seed: int = 0) -> Any:
        model = load_model(moe) if is_moe else dense_llama()
        torch.manual_seed(seed)
        with torch.no_grad():  # a policy that has left its reference
            for parameter in model.parameters():
                parameter.add_(0.01 * seed * torch.randn_like(parameter))
        return model

    changes = {"router": "free"} if is_moe else {}
    policy = fresh(1)
    if is_moe:  # the stock term is on, and would count twice
        policy.config.output_router_logits, policy.config.router_aux_loss_coef = True, 0.3
    ours = build(tmp_path, policy, method, reference=fresh() if method == "dpo" else None, **changes)
    theirs = stock(tmp_path, fresh(1), method, fresh())
    mine, their = batch(ours), batch(theirs)
    names = {"input_ids", "labels", "completion_mask", "chosen_input_ids", "rejected_labels"}
    both = names & mine.keys()
    assert both == names & their.keys()
    assert both
    for name in both:
        assert torch.equal(mine[name], their[name]), name
    loss = ours.compute_loss(ours.model, mine)
    assert loss.item() == theirs.compute_loss(theirs.model, their).item()


def by_hand(model: Any, method: str) -> list[torch.Tensor]:
    """The balance term's gradient on each router, of sequences passed through one by one, so without padding."""
    sequences = [row.prompt + row.chosen for row in pairs(method)]
    if method != "sft":
        sequences += [row.prompt + row.rejected for row in pairs(method)]
    routers = [layer.mlp.gate for layer in model.model.layers]
    logits: list[list[torch.Tensor]] = [[] for _ in routers]
    handles = [
        router.register_forward_hook(
            lambda _, args, __, at=at, router=router: logits[at].append(args[0] @ router.weight.T)
        )
        for at, router in enumerate(routers)
    ]
    for sequence in sequences:
        model(torch.tensor([sequence]))
    for handle in handles:
        handle.remove()
    terms = []
    for layer in logits:
        tokens = torch.cat([entry.reshape(-1, 4) for entry in layer])
        assert len(tokens) == sum(map(len, sequences))
        counts = torch.bincount(tokens.topk(2).indices.flatten(), minlength=4)
        terms.append(load_balance(tokens.softmax(-1), counts / counts.sum()))
    loss = WEIGHT * torch.stack(terms).mean()
    return list(torch.autograd.grad(loss, [router.weight for router in routers]))


@pytest.mark.parametrize("method", METHODS)
def test_the_balance_terms_gradient_is_that_of_all_real_tokens(tmp_path: Path, moe: Path, method: str) -> None:
    found = []
    for weight in (WEIGHT, 0.0):
        model = load_model(moe)
        changes = {"objective": {"load_balance": weight}} if weight else {"router": "free"}
        made = build(tmp_path, model, method, reference=load_model(moe) if method == "dpo" else None, **changes)
        inputs = batch(made)
        masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        assert any((mask == 0).any() for mask in masks)
        made.compute_loss(made.model, inputs).backward()
        found.append([layer.mlp.gate.weight.grad for layer in made.model.model.layers])
    for with_term, without, wanted in zip(*found, by_hand(load_model(moe), method), strict=True):
        assert wanted.norm() > 1e-4
        torch.testing.assert_close(with_term - without, wanted, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_measuring_gradients_does_not_change_them(tmp_path: Path, moe: Path, method: str) -> None:
    found = []
    for every in (0, 1):
        made = build(tmp_path, load_model(moe), method, reference=load_model(moe))
        made.gradients_every = every
        made.record_gradients = lambda norms: None
        made.compute_loss(made.model, batch(made)).backward()
        found.append({name: parameter.grad for name, parameter in made.model.named_parameters()})
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": {"rank": 2, "experts": True}}, {"lora": {"rank": 2}, "router": "frozen"}],
    ids=["full", "adapters", "frozen"],
)
@pytest.mark.parametrize("precomputed", [False, True])
def test_the_reference_pass_is_not_recorded(
    tmp_path: Path, moe: Path, changes: dict[str, Any], precomputed: bool
) -> None:
    reference = None if changes else load_model(moe)
    settings = trainer(precompute_ref_log_probs=precomputed)
    made = build(tmp_path, load_model(moe), "dpo", reference=reference, trainer=settings, **changes)
    assert made.objective.take_counts().sum() == 0
    inputs = batch(made)
    if precomputed:
        assert made.ref_model is None
        assert "ref_chosen_logps" in inputs
    made.compute_loss(made.model, inputs)
    tokens = sum(row.tokens for row in pairs("dpo"))
    assert made.objective.take_counts().sum(-1).tolist() == [2 * tokens] * 2  # top-2, two layers


def test_the_reference_has_no_noise_and_keeps_its_routers(tmp_path: Path, moe: Path) -> None:
    """With LoRA it is the same model with adapters off; its routers are those from before the training."""
    plain = build(tmp_path, load_model(moe), "dpo", lora={"rank": 2})
    wanted = plain.compute_ref_log_probs(plain.model, batch(plain))
    for router, routing in (("frozen", {"noise": 3.0}), (None, {"noise": 3.0}), (None, {})):
        made = build(tmp_path, load_model(moe), "dpo", lora={"rank": 2}, router=router, routing=routing)
        with torch.no_grad():
            for parameter in made.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        for found, expected in zip(made.compute_ref_log_probs(made.model, batch(made)), wanted, strict=True):
            assert torch.equal(found, expected)
        assert all(router.training for router in made.objective.routers)


def test_adapters_of_experts_that_no_token_reaches_get_no_gradient(tmp_path: Path) -> None:
    model = load_model(moe_folder(tmp_path / "top1", top_k=1))
    made = build(tmp_path, model, "sft", lora={"rank": 2, "experts": True}, router="frozen")
    with torch.no_grad():
        for layer in model.model.layers:  # one expert is never the best
            layer.mlp.gate.weight[3] = 0
            layer.mlp.gate.weight[:3] = layer.mlp.gate.weight[:1]
            layer.mlp.gate.weight[1:3] *= -1
        for name, parameter in made.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    made.compute_loss(made.model, batch(made)).backward()
    reached = made.objective.take_counts() > 0
    assert not reached[:, 3].any()
    seen = 0
    for name, parameter in made.model.named_parameters():
        if "experts" not in name or not parameter.requires_grad:
            continue
        by_expert = (
            parameter.grad.reshape(4, 2, -1) if "lora_A" in name else parameter.grad.reshape(-1, 2, 4).permute(2, 1, 0)
        )
        layer = int(name.split(".layers.")[1].split(".")[0])
        assert (by_expert.flatten(1).abs().sum(1) > 0).tolist() == reached[layer].tolist(), name
        seen += 1
    assert seen == 8  # A and B of two tensors in two layers
