"""One alignment in one folder: SFT, DPO or CPO on an MoE or a dense model, measured before and after."""

from __future__ import annotations

import copy
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolmoe.alignment.arguments import trainer_arguments
from smolmoe.alignment.job import AlignJob, Measured, router_findings
from smolmoe.alignment.libraries import quiet
from smolmoe.alignment.lora import load_adapters, lora_config, trainable
from smolmoe.alignment.measure import drift
from smolmoe.alignment.tokens import fingerprint
from smolmoe.core.devices import facts
from smolmoe.core.files import growing, place, write_json
from smolmoe.core.folders import move_into_place
from smolmoe.core.progress import Progress, silent
from smolmoe.errors import RequestError
from smolmoe.evaluation.held_out import change
from smolmoe.hub.card_writer import finish_model
from smolmoe.moe.balance import routing_statistics
from smolmoe.moe.loading import Skeleton
from smolmoe.moe.size import size_of
from smolmoe.recipe import parse
from smolmoe.recipe.align import BETA, AlignRecipe
from smolmoe.results.outcome import Outcome, alignment_measured, outcome
from smolmoe.training.arguments import precision
from smolmoe.training.checkpoints import room_for, step_of
from smolmoe.training.estimate import cost_of, top_k_of
from smolmoe.training.folder import ADAPTERS, MODEL, SUMMARY, RunResult, begin, check_step, check_there, open_folder
from smolmoe.training.models import run_provenance
from smolmoe.training.optim import router_names
from smolmoe.training.saved_state import check_finite, load_training_state, model_of, using
from smolmoe.verification.findings import Finding
from smolmoe.verification.routers import tell

CHECKPOINTS = 5  # of a run, by default


class AlignResult(RunResult):
    """What an alignment wrote: `model/`, `adapters/` (with LoRA), `checkpoints/`, `metrics.jsonl`, `summary.json`."""

    @property
    def outcome(self) -> Outcome:
        return outcome(self.model, self.source, self.summary, alignment_measured(self.summary))


@dataclass(frozen=True)
class AlignEstimate:
    """The approximate cost of an alignment: time within a factor of three.

    Attributes:
        total, active, trainable: parameters.
        rows, validation: numbers of training and validation examples.
        dropped: skipped examples, by reason.
        ignored: content of the rows that no example uses -> how often.
        steps, tokens, flops: of the run, the reference's pass included.
        memory_bytes: peak memory.
        seconds: on this machine, without evaluation.
        findings: the doctor's findings on its routers.
        out: the run's folder.
    """

    total: int
    active: int
    trainable: int
    rows: int
    validation: int
    dropped: dict[str, int]
    ignored: dict[str, int]
    steps: int
    tokens: int
    flops: float
    memory_bytes: int
    seconds: float
    findings: tuple[Finding, ...] = ()
    out: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "out"}


def align(
    recipe: AlignRecipe | dict[str, Any],
    *,
    resume: str | None = None,
    overwrite: bool = False,
    report: Progress | None = None,
) -> AlignResult:
    """Align one model; write the model and the measurements before and after into one folder.

    Args:
        recipe: model, method and data; a dict is parsed.
        resume: latest, or a checkpoint's folder, to resume from.
        overwrite: start over if the folder contains a run.
        report: called as the work progresses.

    Raises:
        SmolmoeError: a subclass that names the problem. After TrainingError and OutputError the last complete
            checkpoint can be resumed from.
    """
    if isinstance(recipe, dict):
        recipe = parse(AlignRecipe, recipe)
    run = _Run(recipe, report or silent)
    check_there(recipe.out, resume)
    with quiet(), growing(recipe.out):
        return run.go(resume, overwrite)


def estimate(recipe: AlignRecipe | dict[str, Any]) -> AlignEstimate:
    """The cost of an alignment: the rows are read and tokenised, and the weights are checked for NaN and infinity.

    Raises:
        SmolmoeError: as `align`, for problems that are known before training.
    """
    if isinstance(recipe, dict):
        recipe = parse(AlignRecipe, recipe)
    place(recipe.out, "growing folder")
    with quiet():
        return _Run(recipe, silent).estimate()


class _Run(AlignJob):
    """A run and what it builds on the way."""

    trainable: int

    def go(self, resume: str | None, overwrite: bool) -> AlignResult:
        recipe = self.recipe
        checkpoint = open_folder(recipe, resume, overwrite=overwrite, blocks_a_step=self.rows_a_step())
        self.prepare()
        check_step(checkpoint, self.steps())
        self.report("Reading the model", 0, 0)
        model = self.load(self.source)
        findings = router_findings(recipe, model, self.granularity)
        tell(findings)
        before = self.measured(model, "before")
        trainer = self._trainer(model, checkpoint)
        self.trainable = trainable(trainer.model)
        # All checks passed: from here on the folder is this run's.
        begin(
            recipe,
            self.tokenizer,
            data=fingerprint(self.rows),
            blocks_a_step=self.rows_a_step(),
            checkpoint=checkpoint,
        )
        trainer.open_metrics(0 if checkpoint is None else step_of(checkpoint))
        self._train(trainer, checkpoint)
        self.report("Writing the model", 0, 0)
        with room_for("the model", recipe.out):
            self._write(trainer)
        return self._finish(trainer, before, findings)

    # -- training ------------------------------------------------------------------------------------------------

    def _trainer(self, model: Any, checkpoint: Path | None) -> Any:
        from smolmoe.alignment.routed_trainers import make_trainer

        recipe = self.recipe
        save_steps = max(1, self.steps() // CHECKPOINTS)
        arguments = trainer_arguments(recipe, length=self.length, save_steps=save_steps)
        adapters, reference = None, None
        if recipe.lora is not None:
            adapters = lora_config(recipe.lora, model, train_routers=recipe.router != "frozen")
        else:
            # In a resumed run, too, the reference is the initial model.
            reference = model if checkpoint is not None else copy.deepcopy(model) if recipe.method == "dpo" else None
            model = model if checkpoint is None else model_of(checkpoint, lambda: self.load(checkpoint))
        trainer = make_trainer(
            recipe,
            self.rows,
            model=model,
            reference=reference,
            tokenizer=self.tokenizer,
            arguments=arguments,
            adapters=adapters,
            granularity=self.granularity,
            on_step=lambda done, total, detail: self.report("Training", done, total, detail),
        )
        if checkpoint is not None:
            if adapters is not None:
                with using(checkpoint / "adapter_model.safetensors"):
                    load_adapters(trainer.model, checkpoint)
                check_finite(trainer.model, checkpoint)
            load_training_state(trainer.model, checkpoint)
        return trainer

    def _train(self, trainer: Any, checkpoint: Path | None) -> None:
        self.report("Training", 0, self.steps())
        try:
            trainer.train_from(checkpoint)
        except (ValueError, NotImplementedError) as error:
            if trainer.state.global_step:
                raise
            # TRL checks some values, such as the kind of loss, only in its first step.
            raise RequestError(f"TRL refuses it: {error}", field="trainer", value=self.recipe.trainer) from error

    def _write(self, trainer: Any) -> None:
        from smolmoe.alignment.routed_trainers import write_model

        names = [MODEL] if self.recipe.lora is None else [MODEL, ADAPTERS]
        partial = {name: self.recipe.out / f".{name}.partial" for name in names}
        for folder in partial.values():
            shutil.rmtree(folder, ignore_errors=True)
        write_model(trainer, partial[MODEL], partial.get(ADAPTERS), pad_token=self.pad_token)
        write_json(partial[MODEL] / "smolmoe.json", self._provenance())
        for name, folder in partial.items():
            move_into_place(folder, self.recipe.out / name)

    def _provenance(self) -> dict[str, Any]:
        return run_provenance("align", self.recipe, self.source, self.provenance, "trl", "peft")

    def _finish(self, trainer: Any, before: Measured, findings: tuple[Finding, ...]) -> AlignResult:
        self.report("Reading the trained model", 0, 0)
        after_model = self.load(self.recipe.out / MODEL)
        after = self.measured(after_model, "after")
        beta = self.recipe.beta or BETA
        summary: dict[str, Any] = {
            "method": self.recipe.method,
            "router": self.recipe.router or ("balanced" if after.routers is not None else None),
            "steps": trainer.state.global_step,
            "rows": {"train": len(self.rows), "validation": len(self.validation)},
            "dropped": {"train": self.dropped.to_json(), "validation": self.unused.to_json()},
            "ignored": self.ignored,
            "parameters": {**size_of(after_model).to_json(), "trainable": self.trainable},
            "tokens": trainer.pace.read(),
            "train_seconds": round(trainer.clock.seconds, 2),
            "device": facts(str(trainer.args.device)),
            "before": before.answers.to_json(),
            "after": after.answers.to_json(before.answers, beta),
        }
        if before.routers is not None and after.routers is not None:
            summary["drift"] = drift(before.routers, after.routers)
            for name, state in (("before", before.routers), ("after", after.routers)):
                summary[name]["routing"] = routing_statistics(state.chosen.sum(1), self.recipe.routing.reserved)
        if before.scores is not None and after.scores is not None:
            summary["corrections"] = {"before": before.scores, "after": after.scores}
        if findings:
            summary["findings"] = [asdict(found) for found in findings]
        rows = self.validation
        summary["change"] = change(before.answers.documents(rows), after.answers.documents(rows)).to_json()
        write_json(self.recipe.out / SUMMARY, summary)
        finish_model(self.recipe.out / MODEL, summary)
        return AlignResult(self.recipe.out, summary, self.recipe.model.path)

    # -- estimate -----------------------------------------------------------------------------------------------

    def estimate(self) -> AlignEstimate:
        recipe = self.recipe
        self.prepare()
        model = Skeleton(self.source).model
        steps, a_step = self.steps(), self.rows_a_step()
        sequences = 1 if recipe.method == "sft" else 2
        length = max(1, round(sum(row.tokens for row in self.rows) / (sequences * len(self.rows))))
        costs = cost_of(
            model,
            steps=steps,
            blocks_a_step=a_step * sequences,
            micro_batch=int(recipe.trainer["per_device_train_batch_size"]) * sequences,
            length=length,
            optimizer=str(recipe.trainer["optim"]),
            device=self.device,
            bf16=bool(recipe.trainer.get("bf16", precision(self.device, recipe.trainer)["bf16"])),
            whole_logits=True,
            top_k=top_k_of(recipe),
        )
        frozen = router_names(model) if recipe.router == "frozen" else set()
        if recipe.lora is not None:
            from peft import get_peft_model

            model = get_peft_model(model, lora_config(recipe.lora, model, train_routers=not frozen))
        else:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)
        factor = 4 / 3 if recipe.method == "dpo" else 1.0  # the reference adds one forward pass
        size = costs.size
        return AlignEstimate(
            size.total,
            size.active,
            trainable(model),
            len(self.rows),
            len(self.validation),
            self.dropped.to_json(),
            self.ignored,
            steps,
            costs.tokens,
            costs.flops * factor,
            costs.memory_bytes,
            costs.seconds * factor,
            router_findings(recipe, model, self.granularity),
        )
