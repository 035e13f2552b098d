"""The Trainer of transformers with our objective, checkpoints and measurements."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, default_data_collator
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from smolmoe.core.config_writer import complete_config
from smolmoe.core.files import write_json
from smolmoe.moe import balance, losses
from smolmoe.moe.control import saved_state, without_training_state
from smolmoe.moe.loading import no_progress_bar
from smolmoe.moe.routing import RoutingCapture
from smolmoe.recipe import TrainRecipe
from smolmoe.training.allocator import kept_memory
from smolmoe.training.checkpoints import AtomicCheckpoints
from smolmoe.training.chunked_loss import HeadLoss, head_loss
from smolmoe.training.distillation import Distillation
from smolmoe.training.distributed import is_sharded, load_optimizer, place_moments, whole_state
from smolmoe.training.folder import HELD_OUT_BEFORE
from smolmoe.training.metrics import Clock, MetricsFile, flatten, peak_memory, perplexity
from smolmoe.training.objective import Objective, RoutedTraining, RouterCallback
from smolmoe.training.optim import (
    expert_names,
    install_moments,
    learning_rate_factors,
    router_names,
    slow_start,
    split_groups,
)
from smolmoe.training.own_config import OwnConfig
from smolmoe.training.saved_state import TRAINING_STATE

logger = logging.getLogger(__name__)

COLLAPSED = 0.5  # normalised entropy of a layer's load: as if E^0.5 experts were used alike

Step = Callable[[int, int], None]  # step, of how many


class MoeTrainer(RoutedTraining, AtomicCheckpoints, Trainer):
    """One run: `train()`, with held-out measurements at the steps in `measured_at`. Set `metrics` before.

    Args:
        recipe: of the run.
        objective: router terms.
        measure: gives the held-out losses of a model: `loss`, `by_domain`, and of an MoE whose routers the capture
            records also `counts` [L, E].
        measured_at: steps; 0 is before the first.
        moments: Adam state to begin with, by parameter name.
        carried: names of all parameters that began with such state, in a resumed run too.
        scales: learning-rate factors of tensors that a conversion scaled.
        on_step: told of every step done.
        distillation: a teacher, whose targets the batches hold.
        **trainer: what `transformers.Trainer` takes.

    Attributes:
        metrics: where rows go.
    """

    metrics: MetricsFile

    def __init__(
        self,
        *,
        recipe: TrainRecipe,
        objective: Objective,
        measure: Callable[[Any, RoutingCapture | None], Any],
        measured_at: set[int],
        moments: Mapping[str, Any] | None = None,
        carried: Collection[str] = (),
        scales: Mapping[str, float] | None = None,
        on_step: Step | None = None,
        distillation: Distillation | None = None,
        **trainer: Any,
    ):
        self.own_config = OwnConfig(trainer["model"])
        # Stacks blocks as they are: the collator of a tokenizer would turn each of a teacher's numbers into an object.
        super().__init__(compute_loss_func=distillation, data_collator=default_data_collator, **trainer)
        # Taken from the Trainer, which would delete the last checkpoint where it is not the best.
        self.keep, self.args.save_total_limit = self.args.save_total_limit, None
        self.is_sharded = is_sharded(self.model)
        # As of a model that transformers sharded while loading it: accelerate must not wrap it.
        self.is_distributed_loading_by_transformers = self.is_sharded
        self.recipe = recipe
        self.run_folder = recipe.out
        self.objective = objective
        self.distillation = distillation
        self.measure = measure
        self.measured_at = measured_at
        self.moments = moments or {}
        self.carried = carried
        self.scales = scales or {}
        self.on_step = on_step
        self.control: Any
        self.clock = Clock()
        self.last_held_out: Any = None
        self._micro: list[dict[str, torch.Tensor]] = []
        self._steps: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._window_from = (0, 0.0)
        self._collapsed: set[int] = set()
        self._gradients: dict[str, float] = {}
        self._rate = 0.0  # of the last step
        for callback in (PrinterCallback, ProgressCallback):  # stdout is for results; progress is `on_step`'s
            self.remove_callback(callback)
        self.add_callback(RouterCallback(objective))
        self.add_callback(_Watch(self))
        self.head_loss = self._head_loss()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with kept_memory():
            return super().train(*args, **kwargs)

    # -- loss ----------------------------------------------------------------------------------------------------

    def _head_loss(self) -> HeadLoss | None:
        """The loss without whole logits; None where something else needs those, or the head is not here as a whole."""
        needs_logits = self.distillation is not None or self.args.label_smoothing_factor
        if needs_logits or self.is_sharded or self.args.n_gpu > 1 or self.args.torch_compile:
            return None
        return head_loss(self.model)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.head_loss is None else self.head_loss.applied():
            return super().compute_loss(*args, **kwargs)

    # -- order, optimiser ----------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> Any:
        begun = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not begun:
            own = self.model if model is None else model
            factors = learning_rate_factors(own, self.recipe)
            split_groups(optimizer, own, factors, self.scales, self._slow_parameters(own))
            install_moments(optimizer, own, place_moments(self.moments, own))
        return optimizer

    def _slow_parameters(self, model: Any) -> set[str]:
        """Routers; and if most of the model resumes with carried moments, the experts that could not."""
        fresh = expert_names(model) - set(self.carried) if self.carried else set()
        return router_names(model) | fresh

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        routing = self.recipe.routing
        slow_start(scheduler, self.optimizer, freeze=routing.freeze, warmup=routing.warmup_steps or 0)
        return scheduler

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """Not at all: until the last micro-batch, every process would keep the gradients of the whole model."""
        return nullcontext()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the model was loaded from there, by names that its class maps and a state dict does not."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        load_optimizer(self.optimizer, torch.load(folder / OPTIMIZER_NAME, mmap=True, weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    # -- writing -------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model for inference; training-only state goes into a separate file."""
        with self.objective.as_served(), self.own_config.restored():
            state_dict = state_dict if state_dict is not None else self._whole_model()
            if self.args.should_save:
                super()._save(output_dir, without_training_state(state_dict))
        own = whole_state(saved_state(self.model))
        if own and output_dir is not None and self.args.should_save:
            save_file(own, Path(output_dir) / TRAINING_STATE)

    def _whole_model(self) -> dict[str, Any]:
        return whole_state(self.model.state_dict(keep_vars=True)) if self.is_sharded else self.model.state_dict()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """In the form of one process, so that any number of them can resume, sharded or not."""
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def write_model(self, folder: Path) -> None:
        """The trained model as it is to be used: what training alone needs folded in or left out."""
        self.objective.finish()
        state_dict = without_training_state(self._whole_model())
        if not self.args.should_save:
            return
        with no_progress_bar(), self.own_config.restored():
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        complete_config(folder)
        self.processing_class.save_pretrained(folder)

    # -- measuring -----------------------------------------------------------------------------------------------

    def record(self, values: dict[str, torch.Tensor]) -> None:
        self._micro.append(values)

    def record_gradients(self, norms: dict[str, float]) -> None:
        self.metrics.add("gradients", self.state.global_step, norms=norms)
        self._gradients = norms

    def finish_step(self) -> None:
        """Put the step's micro-batches together; nothing is read off the device yet."""
        names = self._micro[0]
        mean = {name: torch.stack([values[name] for values in self._micro]).float().mean() for name in names}
        self._micro.clear()
        self._steps.append((self.state.global_step, mean))
        if self.on_step is not None:
            self.on_step(self.state.global_step, self.state.max_steps)

    def flush(self) -> dict[str, Any] | None:
        """Write what happened since the last time; returns the window's row."""
        if not self._steps:
            return None
        values = self._average_over_ranks(torch.stack([torch.stack([*mean.values()]) for _, mean in self._steps]))
        names = list(self._steps[0][1])
        for (step, _), row in zip(self._steps, values.tolist(), strict=True):
            terms = dict(zip(names, row, strict=True))
            self.metrics.add("step", step, loss=sum(row) - self._share_left_out() * terms["ce"], **terms)
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        ce, distilled = means["ce"], {name: means[name] for name in ("distill",) if name in means}
        step = self._steps[-1][0]
        self._steps.clear()
        own = {"ce": ce, **distilled, "perplexity": perplexity(ce)}
        row = self.metrics.add("window", step, **own, **self._speed(step), **self._load(ce))
        if "balance" in row:
            self._watch_for_collapse(row)
        return row

    def _share_left_out(self) -> float:
        """Of the cross-entropy: what a teacher takes the place of."""
        return 0.0 if self.distillation is None else self.distillation.weight

    def _average_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        if self.args.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.args.world_size
        return values

    def _speed(self, step: int) -> dict[str, Any]:
        seconds, (from_step, from_seconds) = self.clock.read(), self._window_from
        self._window_from = (step, seconds)
        per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        tokens = (step - from_step) * per_step * self.recipe.data.length
        return {
            "tokens": step * per_step * self.recipe.data.length,
            "tokens_per_second": round(tokens / max(seconds - from_seconds, 1e-9), 1),
            "seconds": round(seconds, 3),
            "memory": peak_memory(self.args.device),
            "learning_rate": self._rate,
        }

    def _load(self, ce: float) -> dict[str, Any]:
        counts = self.objective.take_counts()
        if counts is None:
            return {}
        if self.args.world_size > 1:
            torch.distributed.all_reduce(counts)
        found = self._routing(counts)
        found["balanced_perplexity"] = losses.balanced_perplexity(ce, found["balance"], self.recipe.objective.beta)
        hits = self.objective.take_hits()
        if hits is not None:
            if self.args.world_size > 1:
                torch.distributed.all_reduce(hits)
            *by_layer, tokens = hits.tolist()
            found["routing_accuracy"] = [round(hit / max(1, tokens), 4) for hit in by_layer]
        return found

    def _routing(self, counts: torch.Tensor) -> dict[str, Any]:
        return balance.routing_statistics(counts, self.recipe.routing.reserved)

    def _watch_for_collapse(self, row: dict[str, Any]) -> None:
        collapsed = [layer for layer, value in enumerate(row["balance_by_layer"]) if value < COLLAPSED]
        if collapsed or row["dead"]:
            self.metrics.add("alarm", row["step"], collapsed_layers=collapsed, dead=row["dead"])
        if set(collapsed) - self._collapsed:
            logger.warning(
                "Step %d: routers of layers %s use few of their experts (balance %s, 1 is even).",
                row["step"],
                collapsed,
                ", ".join(f"{row['balance_by_layer'][layer]:.2f}" for layer in collapsed),
            )
        self._collapsed = set(collapsed)

    @contextmanager
    def as_stored(self) -> Iterator[Any]:
        """The model computing in the type that its weights have: accelerate's autocast is off within.

        An exact conversion would otherwise show a jump of the size of bf16's rounding.
        """
        model = self.accelerator.unwrap_model(self.model)
        wrapped, own = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
        if wrapped is None or own is None:
            yield model
            return
        model.forward = own
        try:
            yield model
        finally:
            model.forward = wrapped

    def measured(self, capture: RoutingCapture | None) -> Any:
        """What `measure` gives of the model now."""
        with self.as_stored() as model:
            return self.measure(model, capture)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out losses, by domain, and how even routing is on the same tokens."""
        with self.clock.paused():
            self.flush()
            found = self.last_held_out = self.measured(self.objective.capture)
            if not self.state.global_step and self.args.should_save:
                write_json(self.run_folder / HELD_OUT_BEFORE, found.documents_json())
            row: dict[str, Any] = {"loss": found.loss, "perplexity": perplexity(found.loss)}
            row["by_domain"] = found.by_domain
            if found.counts is not None:
                row |= self._routing(found.counts)
                beta = self.recipe.objective.beta
                row["balanced_perplexity"] = losses.balanced_perplexity(found.loss, row["balance"], beta)
            self.metrics.add("held_out", self.state.global_step, seconds=round(self.clock.read(), 3), **row)
            logger.info("step %d of %d: held-out loss %.4f", self.state.global_step, self.state.max_steps, found.loss)
            metrics = {f"eval_{name}": value for name, value in flatten(row).items()}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        row = self.flush()
        if row is not None:
            logs |= flatten({name: value for name, value in row.items() if name not in ("kind", "step")})
            logs |= flatten({"router_gradient": self._gradients})
            self._gradients = {}
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        with self.clock.paused():
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        self.flush()
        with no_progress_bar():
            super()._save_checkpoint(model, trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A new best is saved at once, so that it can be gone back to."""
        best: bool = super()._determine_best_metric(metrics, trial)
        if best and self.state.global_step and self.args.save_strategy != "no":
            self.control.should_save = True
        return best


class _Watch(TrainerCallback):
    """The clock, the steps, and when to measure."""

    def __init__(self, trainer: MoeTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer._window_from = (state.global_step, trainer.clock.read())
        if 0 in trainer.measured_at and state.global_step == 0:
            trainer.evaluate()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.clock.start()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._rate = self.trainer._get_learning_rate()  # the schedule has not advanced yet

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.finish_step()
        if state.global_step in self.trainer.measured_at:
            control.should_evaluate = True
