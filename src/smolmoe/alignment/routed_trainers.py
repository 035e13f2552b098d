"""The training engine's router terms over TRL's trainers: what is recorded when, what is kept, what is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

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
from smolmoe.moe.control import saved_state, without_training_state
from smolmoe.moe.loading import no_progress_bar
from smolmoe.recipe.align import LOAD_BALANCE, AlignRecipe
from smolmoe.recipe.train import ObjectiveRecipe
from smolmoe.training.checkpoints import AtomicCheckpoints
from smolmoe.training.metrics import Clock, MetricsFile
from smolmoe.training.objective import Objective, RoutedTraining, RouterCallback
from smolmoe.training.optim import router_names, slow_start, split_groups
from smolmoe.training.own_config import OwnConfig
from smolmoe.training.saved_state import TRAINING_STATE

Step = Callable[[int, int], None]  # step, of how many


class PolicyObjective(Objective):
    """Router terms of the passes of the policy alone, on the tokens that its attention mask keeps.

    A pass without gradients (the reference's, with adapters off, or one that measures) is not recorded, and routers
    decide in it as they are served: without noise, sampling or dropped experts.

    Args:
        policy: the model that the trainer calls: `model` itself, or what PEFT wrapped around it.
        model, objective, routing, granularity: as of `Objective`.
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


class _Aligned(RoutedTraining, AtomicCheckpoints):
    """What the three trainers have in common. Set `objective` and `metrics` before training."""

    recipe: AlignRecipe
    metrics: MetricsFile
    clock: Clock
    is_sharded = False
    accelerator: Any
    control: Any
    optimizer: Any
    lr_scheduler: Any
    processing_class: Any

    def begin(self, recipe: AlignRecipe, objective: Objective, own_config: OwnConfig, on_step: Step | None) -> None:
        """What a trainer of TRL does not take when it is made.

        Args:
            own_config: the model's, as it was before.
        """
        trainer: Any = self
        self.own_config = own_config
        self.recipe, self.objective, self.on_step = recipe, objective, on_step
        self.run_folder = recipe.out
        self.keep, self.args.save_total_limit = self.args.save_total_limit, None
        self.clock = Clock()
        self._micro: list[dict[str, torch.Tensor]] = []
        for callback in (PrinterCallback, ProgressCallback):  # stdout is for results; progress is `on_step`'s
            trainer.remove_callback(callback)
        trainer.add_callback(RouterCallback(objective))
        trainer.add_callback(_Watch(self))

    def create_optimizer(self, model: Any = None) -> Any:
        begun = self.optimizer is not None
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if not begun:
            own = self.model if model is None else model
            rate, routers = self.recipe.routing.learning_rate, router_names(own)
            factors = {} if rate is None else dict.fromkeys(routers, rate / self.args.learning_rate)
            split_groups(optimizer, own, factors, {}, routers)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        routing = self.recipe.routing
        slow_start(scheduler, self.optimizer, freeze=routing.freeze, warmup=routing.warmup_steps or 0)
        return scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the model was loaded from there, by names that its class maps and a state dict does not."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model for inference; training-only state goes into a separate file."""
        with self.objective.as_served(), self.own_config.restored():
            state_dict = state_dict if state_dict is not None else self.model.state_dict()
            super()._save(output_dir, without_training_state(state_dict))  # type: ignore[misc]
        own = saved_state(self.model)
        if own and output_dir is not None:
            save_file(own, f"{output_dir}/{TRAINING_STATE}")

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        with self.clock.paused(), no_progress_bar():
            super()._save_checkpoint(model, trial)

    # -- measuring -----------------------------------------------------------------------------------------------

    def record(self, values: dict[str, torch.Tensor]) -> None:
        self._micro.append(values)

    def record_gradients(self, norms: dict[str, float]) -> None:
        norms = {self.recipe.method if name == "ce" else name: norm for name, norm in norms.items()}
        self.metrics.add("gradients", self.state.global_step, norms=norms)

    def finish_step(self) -> None:
        """Write the step's row: the method's loss and each term, their means over the step's micro-batches."""
        names = self._micro[0]
        mean = {name: torch.stack([values[name] for values in self._micro]).float().mean() for name in names}
        self._micro.clear()
        values = dict(zip(names, torch.stack([*mean.values()]).tolist(), strict=True))
        values = {self.recipe.method if name == "ce" else name: value for name, value in values.items()}
        self.metrics.add("step", self.state.global_step, loss=sum(values.values()), **values)
        if self.on_step is not None:
            self.on_step(self.state.global_step, self.state.max_steps)

    def finish_window(self, logs: dict[str, Any]) -> None:
        """Write what TRL has measured since the last time, and what the routers chose."""
        found = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        own = ("loss", "grad_norm", "epoch", "total_flos", "train_loss", "train_runtime")
        row = {name: value for name, value in found.items() if name not in own and not name.startswith("train_")}
        row |= {"seconds": round(self.clock.read(), 3)}
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


class _Watch(TrainerCallback):
    """The clock, the steps, and what is logged."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.finish_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:  # the run's last entry sums up what is in the summary
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
        reference: for DPO, a separate model; None if `adapters` are switched off for it.
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
            one.config.output_router_logits = False  # nothing counts twice: balance is ours
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
    return trainer


def objective_of(recipe: AlignRecipe, model: Any) -> ObjectiveRecipe:
    """The recipe's terms; an MoE whose routers are to stay balanced gets the balance term where no other is given."""
    given = recipe.objective
    is_free = recipe.router in ("frozen", "free") or not router_names(model)
    if is_free or given.load_balance or given.bias_rate:
        return given
    return given.model_copy(update={"load_balance": LOAD_BALANCE})


def write_model(trainer: Any, folder: Any, adapters: Any | None, *, pad_token: str | None) -> None:
    """The trained model in its class's format; adapters are saved next to it and merged into it.

    Args:
        folder: of the model.
        adapters: folder of the adapters, where there are any.
        pad_token: of the model's tokenizer; if it has none, the trainer's pads with another token.
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
