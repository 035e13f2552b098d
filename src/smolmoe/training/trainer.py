"""The Trainer of transformers with router terms, atomic checkpoints and held-out evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, default_data_collator
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from smolmoe.core.allocator import kept_memory
from smolmoe.core.config_writer import complete_config
from smolmoe.core.files import write_json
from smolmoe.moe import balance, losses
from smolmoe.moe.control import without_training_state
from smolmoe.moe.loading import no_progress_bar
from smolmoe.moe.routing import RoutingCapture
from smolmoe.moe.similarity import similarity_statistics
from smolmoe.recipe import TrainRecipe
from smolmoe.training.chunked_loss import HeadLoss, head_loss
from smolmoe.training.distillation import Distillation
from smolmoe.training.distributed import is_sharded, load_optimizer, place_moments, whole_state
from smolmoe.training.folder import HELD_OUT_BEFORE
from smolmoe.training.metrics import flatten, peak_memory, perplexity
from smolmoe.training.objective import Objective
from smolmoe.training.optim import expert_names, install_moments
from smolmoe.training.own_config import OwnConfig
from smolmoe.training.preset_bias import KIND, preset_biases
from smolmoe.training.run_trainer import RunTrainer, Step, StepCallback

logger = logging.getLogger(__name__)

COLLAPSED = 0.5  # normalised entropy of a layer's load: like E^0.5 experts with equal loads


class MoeTrainer(RunTrainer, Trainer):
    """One run: `train()`, with held-out measurements at the steps in `measured_at`. Set `metrics` before.

    Args:
        recipe: of the run.
        objective: router terms.
        measure: returns the held-out losses of a model: `loss`, `by_domain`, and for an MoE whose routers the capture
            records also `counts` [L, E].
        measured_at: steps; 0 is before the first.
        moments: initial Adam state, by parameter name.
        carried: names of all parameters that started with such a state, in a resumed run, too.
        scales: learning-rate factors of tensors that a conversion scaled.
        on_step: called after every step.
        distillation: a teacher, whose targets are in the batches.
        **trainer: arguments of `transformers.Trainer`.
    """

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
        own_config = OwnConfig(trainer["model"])
        # This collator stacks tensors; a tokenizer's would convert each of a teacher's numbers into an object.
        super().__init__(compute_loss_func=distillation, data_collator=default_data_collator, **trainer)
        self.begin(recipe, objective, own_config, on_step)
        self.is_sharded = is_sharded(self.model)
        # As if transformers had sharded the model while loading it: accelerate must not wrap it.
        self.is_distributed_loading_by_transformers = self.is_sharded
        self.distillation = distillation
        self.measure = measure
        self.measured_at = measured_at
        self.moments = moments or {}
        self.carried = carried
        self.scales = scales or {}
        self.last_held_out: Any = None
        self._steps: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._window_from = (0, 0.0)
        self._collapsed: set[int] = set()
        self._gradients: dict[str, float] = {}
        self._rate = 0.0  # of the last step
        self.add_callback(_Watch(self))
        self.head_loss = self._head_loss()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with kept_memory():
            return super().train(*args, **kwargs)

    # -- loss ----------------------------------------------------------------------------------------------------

    def _head_loss(self) -> HeadLoss | None:
        """The loss without full logits; None if something else needs them, or the head is sharded or copied."""
        needs_logits = self.distillation is not None or self.args.label_smoothing_factor
        if needs_logits or self.is_sharded or self.args.n_gpu > 1 or self.args.torch_compile:
            return None
        return head_loss(self.model)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.head_loss is None else self.head_loss.applied():
            return super().compute_loss(*args, **kwargs)

    # -- order, optimiser ----------------------------------------------------------------------------------------

    def set_up_optimizer(self, optimizer: Any, model: Any) -> None:
        super().set_up_optimizer(optimizer, model)
        install_moments(optimizer, model, place_moments(self.moments, model))

    def slow_parameters(self, model: Any) -> set[str]:
        """Routers; and if most of the model resumes with carried moments, the experts that could not."""
        fresh = expert_names(model) - set(self.carried) if self.carried else set()
        return super().slow_parameters(model) | fresh

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """Disabled: every process would keep the gradients of the whole model until the last micro-batch."""
        return nullcontext()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        load_optimizer(self.optimizer, torch.load(folder / OPTIMIZER_NAME, mmap=True, weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    # -- writing -------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """In the format of a single process, so that any number of processes can resume, sharded or not."""
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def write_model(self, folder: Path) -> None:
        """Write the trained model for inference: training-only state is folded in or removed."""
        self.objective.finish()
        state_dict = without_training_state(self.whole_model())
        if not self.args.should_save:
            return
        with no_progress_bar(), self.own_config.restored():
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        complete_config(folder)
        self.processing_class.save_pretrained(folder)

    # -- measuring -----------------------------------------------------------------------------------------------

    def record_gradients(self, norms: dict[str, float]) -> None:
        super().record_gradients(norms)
        self._gradients = norms

    def keep_step(self, means: dict[str, torch.Tensor]) -> None:
        self._steps.append((self.state.global_step, means))

    def flush(self) -> dict[str, Any] | None:
        """Write the rows since the last call; returns the window's row."""
        if not self._steps:
            return None
        values = torch.stack([torch.stack([*mean.values()]) for _, mean in self._steps])
        values = self.accelerator.reduce(values, "mean")
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
        """The share of the cross-entropy that a teacher replaces."""
        return 0.0 if self.distillation is None else self.distillation.weight

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
        found = self._routing(self.accelerator.reduce(counts, "sum"))
        found["balanced_perplexity"] = losses.balanced_perplexity(ce, found["balance"], self.recipe.objective.beta)
        hits = self.objective.take_hits()
        if hits is not None:
            *by_layer, tokens = self.accelerator.reduce(hits, "sum").tolist()
            found["routing_accuracy"] = [round(hit / max(1, tokens), 4) for hit in by_layer]
        return found

    def _routing(self, counts: torch.Tensor) -> dict[str, Any]:
        return balance.routing_statistics(counts, self.recipe.routing.reserved)

    def _watch_for_collapse(self, row: dict[str, Any]) -> None:
        collapsed = [layer for layer, value in enumerate(row["balance_by_layer"]) if value < COLLAPSED]
        if collapsed or row["dead"]:
            self.metrics.add("alarm", row["step"], collapsed_layers=collapsed, dead=row["dead"])
        if set(collapsed) - self._collapsed and self.recipe.guidance is None:  # guided loads follow the text's domains
            logger.warning(
                "Step %d: routers of layers %s use few of their experts (balance %s, 1 is even).",
                row["step"],
                collapsed,
                ", ".join(f"{row['balance_by_layer'][layer]:.2f}" for layer in collapsed),
            )
        self._collapsed = set(collapsed)

    def preset_biases(self, tokens: int) -> None:
        """Set the selection biases on the first `tokens` of the training text, before the first step."""
        blocks: Any = self.train_dataset
        count = min(len(blocks), -(-tokens // self.recipe.data.length))
        size = self.args.per_device_train_batch_size
        parts = (range(first, min(first + size, count)) for first in range(0, count, size))
        batches = (default_data_collator([blocks[index] for index in part]) for part in parts)
        assert self.objective.capture is not None  # `check_terms` saw routers
        model = self.accelerator.unwrap_model(self.model)
        self.metrics.add(KIND, 0, **preset_biases(model, self.objective.capture, batches))

    @contextmanager
    def as_stored(self) -> Iterator[Any]:
        """Within, the model computes in the dtype of its weights: accelerate's autocast is off.

        Otherwise an exact conversion would show a jump of the size of bf16 rounding.
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
        """The result of `measure` for the current model."""
        with self.as_stored() as model:
            return self.measure(model, capture)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the held-out losses, by domain, and the balance of routing on the same tokens."""
        with self.clock.paused():
            self.flush()
            found = self.last_held_out = self.measured(self.objective.capture)
            self.pace.measured(found.loss)
            if not self.state.global_step and self.args.should_save:
                write_json(self.run_folder / HELD_OUT_BEFORE, found.documents_json())
            row: dict[str, Any] = {"loss": found.loss, "perplexity": perplexity(found.loss)}
            row["by_domain"] = found.by_domain
            if found.counts is not None:
                row |= self._routing(found.counts)
                row |= {} if self.is_sharded else similarity_statistics(self.model)
                beta = self.recipe.objective.beta
                row["balanced_perplexity"] = losses.balanced_perplexity(found.loss, row["balance"], beta)
            documents = {"nll": [round(nll, 4) for nll in found.nll]} if self.recipe.evaluation.by_document else {}
            seconds = round(self.clock.read(), 3)
            self.metrics.add("held_out", self.state.global_step, seconds=seconds, **row, **documents)
            logger.info("step %d of %d: held-out loss %.4f", self.state.global_step, self.state.max_steps, found.loss)
            self.show_step()
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
        super()._save_checkpoint(model, trial)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save a new best step at once."""
        best: bool = super()._determine_best_metric(metrics, trial)
        if best and self.state.global_step and self.args.save_strategy != "no":
            self.control.should_save = True
        return best


class _Watch(StepCallback):
    """Also measures, and notes the learning rate."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer._window_from = (state.global_step, trainer.clock.read())
        if state.global_step:
            return
        if 0 in trainer.measured_at:
            trainer.evaluate()
        if trainer.recipe.objective.preset_bias:
            trainer.preset_biases(trainer.recipe.objective.preset_bias)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._rate = self.trainer._get_learning_rate()  # before the schedule advances

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control)
        if state.global_step in self.trainer.measured_at:
            control.should_evaluate = True
