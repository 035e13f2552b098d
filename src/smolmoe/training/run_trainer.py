"""A mixin with which a trainer of transformers or TRL trains in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from smolmoe.moe.control import saved_state, without_training_state
from smolmoe.moe.loading import no_progress_bar
from smolmoe.training.checkpoints import AtomicCheckpoints
from smolmoe.training.distributed import whole_state
from smolmoe.training.metrics import FILE, Clock, MetricsFile
from smolmoe.training.muon import Muon, muon_layouts
from smolmoe.training.objective import NotFiniteError, Objective, RoutedTraining, RouterCallback
from smolmoe.training.optim import learning_rate_factors, router_names, slow_start, split_groups
from smolmoe.training.own_config import OwnConfig
from smolmoe.training.pace import Pace
from smolmoe.training.saved_state import TRAINING_STATE

Step = Callable[[int, int, str], None]  # optimiser step, of how many, and what else is known


class RunTrainer(RoutedTraining, AtomicCheckpoints):
    """Router terms, learning rates of routers, atomic checkpoints, and rows of metrics.

    Call `begin` when the trainer is made, and `open_metrics` (or set `metrics`) before training. A subclass defines
    `keep_step`.

    Attributes:
        metrics: where rows are written.
        clock: seconds spent training.
        pace: loss and speed, as they are shown.
        scales: learning-rate factors of tensors that a conversion scaled, by parameter name.
        is_sharded: the parameters are spread over processes.
    """

    recipe: Any
    metrics: MetricsFile
    clock: Clock
    pace: Pace
    scales: Mapping[str, float]
    is_sharded = False
    accelerator: Any
    control: Any
    lr_scheduler: Any
    processing_class: Any

    def begin(self, recipe: Any, objective: Objective, own_config: OwnConfig, on_step: Step | None) -> None:
        """Set what is not an argument of the library's trainer.

        Args:
            recipe: of a training or an alignment.
            own_config: the model's, from before the trainer was made.
            on_step: called after every step.
        """
        trainer: Any = self
        self.recipe, self.objective, self.own_config, self.on_step = recipe, objective, own_config, on_step
        self.run_folder = recipe.out
        # Taken from the Trainer, which would delete the last checkpoint if it is not the best.
        self.keep, self.args.save_total_limit = self.args.save_total_limit, None
        self.clock, self.pace, self.scales = Clock(), Pace(self.args.world_size), {}
        self._micro: list[dict[str, torch.Tensor]] = []
        for callback in (PrinterCallback, ProgressCallback):  # stdout is for results; `on_step` reports progress
            trainer.remove_callback(callback)
        trainer.add_callback(RouterCallback(objective))

    def open_metrics(self, after: int, *, write: bool = True) -> None:
        """Open the run's `metrics.jsonl` behind the rows of step `after`, and set the clock to theirs."""
        self.metrics = MetricsFile(self.run_folder / FILE, after=after, write=write)
        self.clock.seconds, self.pace.tokens = self.metrics.seconds, self.metrics.tokens

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end; before a loss or gradient that is not finite stops the run, save the last good step."""
        trainer: Any = self
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except NotFiniteError:
            # The step was not taken, so the weights are those of the last good one. All ranks come here together.
            if self.state.global_step:
                self._save_checkpoint(self.model)
            raise

    # -- optimiser -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> Any:
        begun = self.optimizer is not None
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if not begun:
            self.set_up_optimizer(optimizer, self.model if model is None else model)
        return optimizer

    def set_up_optimizer(self, optimizer: Any, model: Any) -> None:
        """Give every parameter of a new optimiser its learning rate."""
        factors = learning_rate_factors(model, self.args.learning_rate, self.recipe)
        muon = muon_layouts(model) if isinstance(optimizer, Muon) else None
        split_groups(optimizer, model, factors, self.scales, self.slow_parameters(model), muon)

    def slow_parameters(self, model: Any) -> set[str]:
        """Names of the parameters that `routing.freeze` and `routing.warmup_steps` act on."""
        return router_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        routing = self.recipe.routing
        slow_start(scheduler, self.optimizer, freeze=routing.freeze, warmup=routing.warmup_steps or 0)
        return scheduler

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: the model was loaded from there by its class, which maps names that a state dict does not."""

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        with self.clock.paused(), no_progress_bar():
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model for inference; training-only state goes into a separate file."""
        with self.objective.as_served(), self.own_config.restored():
            state_dict = state_dict if state_dict is not None else self.whole_model()
            if self.args.should_save:
                super()._save(output_dir, without_training_state(state_dict))  # type: ignore[misc]
        own = whole_state(saved_state(self.model))
        if own and output_dir is not None and self.args.should_save:
            save_file(own, Path(output_dir) / TRAINING_STATE)

    def whole_model(self) -> dict[str, Any]:
        """The model's state dict; of a sharded model with whole tensors, on rank 0."""
        return whole_state(self.model.state_dict(keep_vars=True)) if self.is_sharded else self.model.state_dict()

    # -- measuring -----------------------------------------------------------------------------------------------

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.pace.saw(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def record(self, values: dict[str, torch.Tensor]) -> None:
        self._micro.append(values)

    def record_gradients(self, norms: dict[str, float]) -> None:
        self.metrics.add("gradients", self.state.global_step, norms=norms)

    def finish_step(self) -> None:
        """Average the step's micro-batches; nothing is read off the device yet."""
        names = self._micro[0]
        mean = {name: torch.stack([values[name] for values in self._micro]).float().mean() for name in names}
        self._micro.clear()
        self.keep_step(mean)
        self.pace.step(mean["ce"])
        self.show_step()

    def show_step(self) -> None:
        """Report the step that was reached."""
        if self.on_step is not None:
            self.on_step(self.state.global_step, self.state.max_steps, self.pace.words(self.clock.read()))

    def keep_step(self, means: dict[str, torch.Tensor]) -> None:
        """Take the loss and the terms of a step."""
        raise NotImplementedError


class StepCallback(TrainerCallback):
    """Starts the clock of a `RunTrainer`, and finishes its steps."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.finish_step()
