"""TRL's trainers with the training engine's router terms, checkpoints and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from smolmoe.alignment.tokens import Row
from smolmoe.alignment.trainers import (
    ContrastiveTrainer,
    PreferenceTrainer,
    SupervisedTrainer,
    collator,
    dataset,
    show_backbone,
)
from smolmoe.core.config_writer import complete_config
from smolmoe.moe import balance
from smolmoe.moe.control import without_training_state
from smolmoe.moe.loading import no_progress_bar
from smolmoe.recipe.align import LOAD_BALANCE, AlignRecipe
from smolmoe.recipe.train import ObjectiveRecipe
from smolmoe.training.objective import Objective
from smolmoe.training.optim import router_names
from smolmoe.training.own_config import OwnConfig
from smolmoe.training.run_trainer import RunTrainer, Step, StepCallback


class PolicyObjective(Objective):
    """Router terms of the policy's passes only, on the tokens that its attention mask keeps.

    A pass without gradients (the reference's, with adapters off, or an evaluation) is not recorded, and its routers
    decide as in inference: without noise, sampling or dropped experts.

    Args:
        policy: the model that the trainer calls: `model` itself, or PEFT's wrapper around it.
        model, objective, routing, granularity: as in `Objective`.
    """

    def __init__(self, policy: Any, model: Any, objective: ObjectiveRecipe, routing: Any, granularity: int = 1):
        super().__init__(model, objective, routing, granularity)
        self._is_open = False
        self._pass = ExitStack()
        if self.capture is not None:
            policy.register_forward_pre_hook(self._before, with_kwargs=True)
            policy.register_forward_hook(self._after, always_call=True)

    @contextmanager
    def recording(self) -> Iterator[None]:
        if self.capture is None:
            yield
            return
        self.capture.clear()
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def _before(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            for router in self.routers:
                self._pass.callback(router.train, router.training)
                router.eval()
        elif self._is_open and self.capture is not None:
            mask = kwargs.get("attention_mask")
            self.capture.keep = None if mask is None else mask.flatten().bool()
            self._pass.enter_context(self.capture)

    def _after(self, module: Any, args: Any, output: Any) -> None:
        self._pass.close()


class _Aligned(RunTrainer):
    """The common part of the three trainers; rows name the loss after the method."""

    def record_gradients(self, norms: dict[str, float]) -> None:
        super().record_gradients(self._by_method(norms))

    def keep_step(self, means: dict[str, torch.Tensor]) -> None:
        values = self._by_method(dict(zip(means, torch.stack([*means.values()]).tolist(), strict=True)))
        self.metrics.add("step", self.state.global_step, loss=sum(values.values()), **values)

    def _by_method(self, values: dict[str, float]) -> dict[str, float]:
        return {self.recipe.method if name == "ce" else name: value for name, value in values.items()}

    def finish_window(self, logs: dict[str, Any]) -> None:
        """Write TRL's measurements and the routing since the last call."""
        found = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        own = ("loss", "grad_norm", "epoch", "total_flos", "train_loss", "train_runtime")
        row = {name: value for name, value in found.items() if name not in own and not name.startswith("train_")}
        row |= {"seconds": round(self.clock.read(), 3), "tokens": self.pace.read()}
        counts = self.objective.take_counts()
        if counts is not None and bool(counts.any()):
            row |= balance.routing_statistics(counts, self.recipe.routing.reserved)
        self.metrics.add("window", self.state.global_step, **row)


class SftTrainer(_Aligned, SupervisedTrainer):
    """SFT with router terms."""


class DpoTrainer(_Aligned, PreferenceTrainer):
    """DPO with router terms."""


class CpoTrainer(_Aligned, ContrastiveTrainer):
    """CPO with router terms."""


class _Watch(StepCallback):
    """Also takes TRL's logs."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:  # the run's last entry is a summary
            self.trainer.finish_window(logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.clock.stop()


def make_trainer(
    recipe: AlignRecipe,
    rows: Sequence[Row],
    *,
    model: Any,
    reference: Any | None,
    tokenizer: Any,
    arguments: Any,
    adapters: Any | None,
    granularity: int = 1,
    on_step: Step | None = None,
) -> Any:
    """The trainer of a run, its routers under its objective.

    Args:
        rows: to train on.
        reference: for DPO, a separate model; None to switch off `adapters` instead.
        adapters: PEFT's config, or None to train all weights.
        granularity: G of an upcycled model.
    """
    kind: Any = {"sft": SftTrainer, "dpo": DpoTrainer, "cpo": CpoTrainer}[recipe.method]
    extra: dict[str, Any] = {"ref_model": reference} if recipe.method == "dpo" else {}
    own_collator = collator(rows, recipe.method, tokenizer, arguments)
    if own_collator is not None:
        extra["data_collator"] = own_collator
    for one in (model, reference):
        if one is None:
            continue
        show_backbone(one)
        if getattr(one.config, "output_router_logits", False):
            one.config.output_router_logits = False  # balance must not count twice
    own_config = OwnConfig(model)
    freeze_routers = recipe.router == "frozen"
    if freeze_routers:
        names = router_names(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in names)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=dataset(rows, recipe.method),
        processing_class=tokenizer,
        peft_config=adapters,
        **extra,
    )
    if recipe.method == "dpo" and arguments.precompute_ref_log_probs:
        trainer.ref_model = None
    base = trainer.model.get_base_model() if adapters is not None else trainer.model
    objective = PolicyObjective(trainer.model, base, objective_of(recipe, base), recipe.routing, granularity)
    trainer.begin(recipe, objective, own_config, on_step)
    trainer.add_callback(_Watch(trainer))
    return trainer


def objective_of(recipe: AlignRecipe, model: Any) -> ObjectiveRecipe:
    """The recipe's terms; with `router: balanced`, an MoE gets a balance term if the recipe has none."""
    given = recipe.objective
    is_free = recipe.router in ("frozen", "free") or not router_names(model)
    if is_free or given.balancing or given.bias_rate:
        return given
    return given.model_copy(update={"load_balance": LOAD_BALANCE})


def write_model(trainer: Any, folder: Any, adapters: Any | None, *, pad_token: str | None) -> None:
    """Write the trained model in its class's format; adapters are saved separately and merged into it.

    Args:
        folder: of the model.
        adapters: folder of the adapters, if there are any.
        pad_token: of the model's tokenizer, which the trainer may have replaced.
    """
    trainer.objective.finish()
    model = trainer.accelerator.unwrap_model(trainer.model)
    with no_progress_bar(), trainer.own_config.restored():
        if adapters is not None:
            model.save_pretrained(adapters, state_dict=without_training_state(model.state_dict()))
            model = model.merge_and_unload()
        model.save_pretrained(folder, state_dict=without_training_state(model.state_dict()))
    complete_config(folder)
    tokenizer = trainer.processing_class
    padding, tokenizer.pad_token = tokenizer.pad_token, pad_token
    tokenizer.save_pretrained(folder)
    tokenizer.pad_token = padding
