"""One training run in one folder: from scratch, from a checkpoint, or resumed."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.devices import facts
from smolmoe.core.files import place, write_json
from smolmoe.core.folders import move_into_place
from smolmoe.core.json_text import read_rows
from smolmoe.core.progress import Progress, silent
from smolmoe.data.corpus import TokenCorpus
from smolmoe.evaluation.held_out import DocumentLosses, HeldOut, change, document_losses
from smolmoe.hub.card_writer import finish_model
from smolmoe.inference.generate import generate
from smolmoe.moe.control import measure_flips
from smolmoe.moe.loading import Skeleton, load_tokenizer
from smolmoe.moe.size import size_of
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.results.outcome import Outcome, outcome, training_measured
from smolmoe.surgery.moments import carry_moments, learning_rate_scales, plan_of
from smolmoe.training import distributed, models, text
from smolmoe.training.arguments import check_trainer, own_optimizer, training_arguments
from smolmoe.training.best import find_best, losses_before, write_best
from smolmoe.training.carried import complete, read_moments
from smolmoe.training.checkpoints import room_for, step_of
from smolmoe.training.distillation import open_distillation
from smolmoe.training.estimate import Estimate, blocks_a_step, skeleton, top_k_of, training_flops
from smolmoe.training.estimate import estimate as cost
from smolmoe.training.fit import check_fits
from smolmoe.training.folder import (
    BEST,
    HELD_OUT,
    MODEL,
    SUMMARY,
    TOKENIZER,
    RunResult,
    begin,
    check_step,
    check_there,
    open_folder,
)
from smolmoe.training.guidance import resolve
from smolmoe.training.metrics import FILE as METRICS
from smolmoe.training.models import (
    find_tokenizer,
    granularity_of,
    model_folder,
    parent_provenance,
    run_provenance,
)
from smolmoe.training.muon import NAME as MUON
from smolmoe.training.muon import muon_layouts
from smolmoe.training.objective import Objective
from smolmoe.training.optim import freeze
from smolmoe.training.preset_bias import KIND
from smolmoe.training.saved_state import load_training_state, model_of
from smolmoe.training.trainer import MoeTrainer
from smolmoe.verification.findings import Finding
from smolmoe.verification.routers import findings_at_start, tell

logger = logging.getLogger(__name__)

FLIP_BLOCKS = 4  # training blocks on which fp32 routing is compared with bf16 routing
MEASUREMENTS = 10  # held-out evaluations of a run, by default
MEASURING = "Measuring the held-out loss"


class TrainResult(RunResult):
    """The output of a training run: `model/`, `best/`, `checkpoints/`, `metrics.jsonl`, `summary.json`."""

    @property
    def best(self) -> Path | None:
        """The model with the lowest held-out loss of the run; None if its checkpoint was not kept."""
        return self.out / BEST if self.summary["best"]["model"] is not None else None

    @property
    def outcome(self) -> Outcome:
        return outcome(self.model, self.source, self.summary, training_measured(self.summary))


def train(
    recipe: TrainRecipe | dict[str, Any],
    *,
    resume: str | None = None,
    overwrite: bool = False,
    report: Progress | None = None,
) -> TrainResult:
    """Train one model; write the model and the measurements into one folder.

    Args:
        recipe: model, data and options; a dict is parsed.
        resume: latest, best, or a checkpoint's folder, to resume from.
        overwrite: start over if the folder contains a run.
        report: called as the work progresses.

    Raises:
        SmolmoeError: a subclass that names the problem. After TrainingError and OutputError the last complete
            checkpoint can be resumed from.
    """
    if isinstance(recipe, dict):
        recipe = parse(TrainRecipe, recipe)
    distributed.join(recipe)
    distributed.on_main(lambda: check_there(recipe.out, resume))
    with distributed.held_by_main(recipe.out):
        return _Run(recipe, resume, overwrite, report or silent).go()


def estimate(recipe: TrainRecipe) -> Estimate:
    """The cost of a run, and the doctor's findings on its routers, from configs.

    The weights are read once, to find NaN and infinity.

    Raises:
        SmolmoeError: as `train`, for problems that are known before training. The number of steps must be given.
    """
    place(recipe.out, "growing folder")
    costs, folder = cost(recipe), model_folder(recipe.model)
    if folder is not None:
        Skeleton(folder).check_finite()
    return replace(costs, findings=router_findings(recipe, skeleton(recipe), granularity_of(parent_provenance(folder))))


def router_findings(recipe: TrainRecipe, model: Any, granularity: int) -> tuple[Finding, ...]:
    """The doctor's findings on the routers of a model that this recipe is about to train."""
    guided = recipe.guidance is not None
    return findings_at_start(model, recipe.objective, recipe.routing, guided=guided, granularity=granularity)


class _Run:
    """A run and what it builds on the way."""

    def __init__(self, recipe: TrainRecipe, resume: str | None, overwrite: bool, report: Progress):
        self.recipe = recipe
        self.report = report
        self.writes = distributed.rank() == 0
        check_trainer(recipe)
        self.checkpoint = distributed.on_main(
            lambda: open_folder(recipe, resume, overwrite=overwrite, blocks_a_step=blocks_a_step(recipe))
        )

    def go(self) -> TrainResult:
        recipe = self.recipe
        self.source = distributed.in_turn(lambda: model_folder(recipe.model))
        self.provenance = parent_provenance(self.source)
        self.report("Reading the model", 0, 0)
        self.tokenizer = distributed.on_main(lambda: self._tokenizer(find_tokenizer))
        self.distillation = open_distillation(recipe, self.tokenizer)
        build = distributed.build_once if recipe.parallel == "fsdp" else distributed.in_turn
        self.model = build(lambda: self._model(models.build_model))
        self.granularity = granularity_of(self.provenance)
        check_fits(recipe, self.model, self.granularity)
        self.findings = router_findings(recipe, self.model, self.granularity)
        tell(self.findings)
        self.report("Tokenising", 0, 0)
        corpus = distributed.in_turn(lambda: text.read_corpus(recipe, self.tokenizer, self.report))
        held_out = text.held_out_windows(recipe, corpus, self.tokenizer)
        steps = text.count_steps(recipe, corpus)
        check_step(self.checkpoint, steps)
        self.carried = self._carried()
        trainer = self._trainer(corpus, held_out, steps)
        # All checks passed: from here on the folder is this run's.
        distributed.on_main(
            lambda: begin(
                recipe,
                self.tokenizer,
                data=corpus.fingerprint + (self.distillation.cache.identity if self.distillation else ""),
                blocks_a_step=blocks_a_step(recipe),
                checkpoint=self.checkpoint,
            )
        )
        trainer.open_metrics(_step(self.checkpoint), write=self.writes)
        self.report("Training", _step(self.checkpoint), trainer.args.max_steps)
        trainer.train_from(self.checkpoint)
        trainer.flush()
        return self._finish(trainer, corpus, held_out, steps)

    def _model(self, build: Callable[[TrainRecipe, Any, Path | None], Any]) -> Any:
        checkpoint = self.checkpoint
        if checkpoint is None:
            return build(self.recipe, self.tokenizer, self.source)
        return model_of(checkpoint, lambda: build(self.recipe, self.tokenizer, checkpoint))

    def _tokenizer(self, find: Callable[[TrainRecipe, Path | None], Any]) -> Any:
        if self.checkpoint is not None and (self.recipe.out / TOKENIZER).is_dir():
            return load_tokenizer(self.recipe.out / TOKENIZER)
        if isinstance(self.recipe.tokenizer, int):
            return text.learn_tokenizer(self.recipe, self.recipe.tokenizer, self.report)
        return find(self.recipe, self.source)

    def _blocks(self, corpus: TokenCorpus, count: int) -> Any:
        targets = None if self.distillation is None else self.distillation.cache
        return text.run_blocks(self.recipe, corpus, count, targets)

    # -- training ------------------------------------------------------------------------------------------------

    def _trainer(self, corpus: TokenCorpus, held_out: HeldOut, steps: int) -> MoeTrainer:
        recipe = self.recipe
        every = recipe.evaluation.every or max(1, steps // MEASUREMENTS)
        arguments = training_arguments(recipe, steps=steps, every=every)
        moments, scales = self.carried
        guidance = None
        if recipe.guidance is not None:
            guidance = resolve(recipe.guidance, self.model, text.domain_shares(recipe, corpus), recipe.routing.reserved)
        freeze(self.model, recipe.trainable)
        objective = Objective(self.model, recipe.objective, recipe.routing, self.granularity, guidance)
        if self.checkpoint is not None:
            load_training_state(self.model, self.checkpoint)
        if recipe.parallel == "fsdp" and arguments.world_size > 1:
            distributed.check_optimizer(recipe.trainer.get("optim", arguments.optim.value))
            distributed.shard(self.model, arguments.device.type, bf16=arguments.bf16)
        return MoeTrainer(
            recipe=recipe,
            objective=objective,
            measure=lambda model, capture: document_losses(
                model, held_out, capture=capture, report=lambda done, total: self.report(MEASURING, done, total)
            ),
            measured_at={*_before(recipe), *recipe.evaluation.at, *range(every, steps, every), steps},
            moments=moments if self.checkpoint is None else None,  # a checkpoint has the state itself
            carried=set(moments),
            scales=scales,
            on_step=lambda done, total, detail: self.report("Training", done, total, detail),
            distillation=self.distillation,
            model=self.model,
            args=arguments,
            optimizer_cls_and_kwargs=own_optimizer(recipe, arguments),
            processing_class=self.tokenizer,
            train_dataset=self._blocks(corpus, steps * blocks_a_step(recipe)),
        )

    def _carried(self) -> tuple[dict[str, Any], dict[str, float]]:
        """The dense source's moments by MoE parameter, and the learning-rate factors of scaled tensors."""
        carry = self.recipe.carry
        if carry is None:
            return {}, {}
        assert self.source is not None  # see `check_fits`
        dense = read_moments(Path(carry.optimizer), muon=self.recipe.trainer.get("optim") == MUON)
        if self.provenance.get("stage") != "upcycle":  # the state is of this very model
            return dense, {}
        plan = plan_of(self.source)
        moments = complete(carry_moments(plan, dense, experts=carry.experts), muon_layouts(self.model))
        return moments, learning_rate_scales(plan)

    # -- results -------------------------------------------------------------------------------------------------

    def _finish(self, trainer: MoeTrainer, corpus: TokenCorpus, held_out: HeldOut, steps: int) -> TrainResult:
        out = self.recipe.out
        self.report("Writing the model", 0, 0)
        with room_for("the model", out):
            self._write_model(trainer)
        # A run that was killed after its last checkpoint has already measured that step.
        last = trainer.last_held_out or trainer.measured(None)
        start = losses_before(out, last)
        size, length = size_of(self.model), self.recipe.data.length
        tokens = steps * blocks_a_step(self.recipe) * length
        summary: dict[str, Any] = {
            "steps": steps,
            "tokens": tokens,
            "flops": training_flops(self.model, steps, blocks_a_step(self.recipe), length, top_k_of(self.recipe)),
            "parameters": size.to_json(),
            "held_out": {**last.to_json(), "documents": len(last.tokens)},
            **({} if start is None else {"before": start.to_json(), "change": self._change(start, last)}),
            "train_seconds": round(trainer.clock.seconds, 2),
            "device": facts(str(trainer.args.device)),
            **self._flips(corpus),
            **({"preset_bias": preset} if (preset := self._preset_bias()) else {}),
            **({"findings": [asdict(found) for found in self.findings]} if self.findings else {}),
            "data": corpus.summary(),
        }

        def write() -> dict[str, Any]:
            summary["samples"] = self._samples()
            write_json(out / HELD_OUT, last.documents_json())
            summary["best"] = self._best(trainer, steps, summary)
            write_json(out / SUMMARY, summary)
            finish_model(out / MODEL, summary)
            return summary

        return TrainResult(out, distributed.on_main(write), self.recipe.model.path)

    def _preset_bias(self) -> dict[str, Any] | None:
        """The load that the preset selection biases gave, of the run's start; None without them."""
        rows = read_rows(self.recipe.out / METRICS) if self.recipe.objective.preset_bias and self.writes else ()
        row = next((row for row in rows if row["kind"] == KIND), None)
        return None if row is None else {key: value for key, value in row.items() if key not in ("kind", "step")}

    def _change(self, before: DocumentLosses, after: DocumentLosses) -> dict[str, Any]:
        found = change(before, after)
        if found.verdict == "worse":
            logger.warning("The held-out loss got worse: %.4f before, %.4f after.", found.before, found.after)
        return found.to_json()

    def _best(self, trainer: MoeTrainer, last: int, summary: dict[str, Any]) -> dict[str, Any]:
        """Write `best/` with its card; returns its step and loss, and no folder if that step has no checkpoint."""
        out = self.recipe.out
        best = find_best(out, trainer.state.best_global_step, last, summary)
        step, loss = best["steps"], best["held_out"]["loss"]
        with room_for("the best checkpoint's model", out):
            folder = write_best(out, step, last, self._provenance())
        if folder is None:
            logger.warning("Step %d had the lowest held-out loss (%.4f), but its checkpoint is missing.", step, loss)
        else:
            finish_model(folder, best)
        return {"step": step, "loss": loss, "model": None if folder is None else BEST}

    def _flips(self, corpus: TokenCorpus) -> dict[str, float]:
        """For routers trained in fp32: the share of tokens for which bf16, as in inference, chooses other experts."""
        if not self.recipe.routing.fp32:
            return {}
        blocks, device = self._blocks(corpus, FLIP_BLOCKS), self.model.device
        batches = [{"input_ids": blocks[i]["input_ids"][None].to(device)} for i in range(FLIP_BLOCKS)]
        with torch.autocast(device.type, torch.bfloat16):
            return {"router_flips": measure_flips(self.model, batches)}

    def _write_model(self, trainer: MoeTrainer) -> None:
        partial = self.recipe.out / f".{MODEL}.partial"
        if self.writes:
            shutil.rmtree(partial, ignore_errors=True)
        trainer.write_model(partial)
        if self.writes:
            write_json(partial / "smolmoe.json", self._provenance())
            move_into_place(partial, self.recipe.out / MODEL)

    def _provenance(self) -> dict[str, Any]:
        return run_provenance("train", self.recipe, self.source, self.provenance)

    def _samples(self) -> list[dict[str, str]]:
        samples = self.recipe.samples
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        found = []
        for prompt in samples.prompts:
            self.report("Writing samples", 0, 0)
            room = positions - len(self.tokenizer(prompt)["input_ids"])
            if room < 1:
                logger.warning("The prompt %r leaves no room in the model's %d positions.", prompt[:40], positions)
                continue
            new = int(min(samples.new_tokens, room))
            plain = {"chat": False, "temperature": 0.0, "repetition_penalty": 1.0}
            result = generate(self.recipe.out / MODEL, prompt, max_new_tokens=new, announce=False, **plain)
            found.append({"prompt": prompt, "text": result.texts[0]})
        return found


def _before(recipe: TrainRecipe) -> list[int]:
    """Step 0, if the model is to be measured before it."""
    return [0] if recipe.evaluation.before else []


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else step_of(checkpoint)
