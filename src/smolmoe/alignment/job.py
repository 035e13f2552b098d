"""The inputs of an alignment: its rows and its model, and how a model is measured."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.alignment.arguments import DEFAULTS, check_trainer
from smolmoe.alignment.examples import read_examples
from smolmoe.alignment.lora import lora_config
from smolmoe.alignment.measure import Answers, RouterState, held_out_answers, router_state
from smolmoe.alignment.tokens import Dropped, Row, tokenised
from smolmoe.core.devices import pick_device
from smolmoe.core.progress import Progress, within
from smolmoe.data.prompts import CorrectionPrompt, CorrectionRow, prompt_ids, read_corrections, strip_instructions
from smolmoe.errors import RequestError
from smolmoe.evaluation.correction import score_corrections
from smolmoe.evaluation.text_metrics import words
from smolmoe.inference.sampling import answering_tokenizer
from smolmoe.moe.loading import Skeleton, load_config, load_model
from smolmoe.moe.routing import find_routers
from smolmoe.recipe.align import LENGTH, AlignRecipe
from smolmoe.training.distributed import world_size
from smolmoe.training.fit import check_terms
from smolmoe.training.models import check_fit, granularity_of, model_folder, parent_provenance, set_implementations
from smolmoe.verification.findings import Finding
from smolmoe.verification.routers import findings_at_start

logger = logging.getLogger(__name__)


def router_findings(recipe: AlignRecipe, model: Any, granularity: int) -> tuple[Finding, ...]:
    """The doctor's findings on a model's routers; none on routers that stay frozen."""
    from smolmoe.alignment.routed_trainers import objective_of

    if recipe.router == "frozen":
        return ()
    return findings_at_start(model, objective_of(recipe, model), recipe.routing, granularity=granularity)


@dataclass(frozen=True)
class Measured:
    """A model's held-out measurements; `scores` if there are texts to correct."""

    answers: Answers
    routers: RouterState | None
    scores: dict[str, Any] | None


class AlignJob:
    """A recipe with all defaults filled in, and what it refers to.

    Attributes:
        recipe: with the method's defaults under `trainer`.
        device: to compute on.
        source, provenance: folder of the model, and the content of its `smolmoe.json`.
        tokenizer: the model's, with a padding token.
        pad_token: the padding token of the model's tokenizer; None if it has none.
        length: maximum number of tokens of an example.
        rows, validation: training and validation examples.
        dropped, unused: skipped training and validation examples.
        ignored: content of the rows that no example uses -> how often.
        corrections: texts to correct, before and after.
    """

    source: Path
    provenance: dict[str, Any]
    tokenizer: Any
    pad_token: str | None
    length: int
    unused: Dropped
    corrections: list[CorrectionRow]
    rows: list[Row]
    validation: list[Row]
    dropped: Dropped
    ignored: dict[str, int]

    def __init__(self, recipe: AlignRecipe, report: Progress):
        if world_size() > 1:
            raise RequestError("alignment runs in one process.", field="processes", value=world_size())
        check_trainer(recipe)
        self.device = pick_device(recipe.device)
        self.report = report
        self.recipe = recipe.model_copy(update={"trainer": {**DEFAULTS[recipe.method], **recipe.trainer}})

    def prepare(self) -> None:
        """Read the tokenizer and the rows, and check them against the model's config."""
        recipe = self.recipe
        source = model_folder(recipe.model)
        assert source is not None  # the recipe has a path
        self.source, self.provenance = source, parent_provenance(source)
        self.tokenizer = answering_tokenizer(source, "model.path")
        self.pad_token = self.tokenizer.pad_token
        if self.pad_token is None:
            logger.info("The tokenizer has no padding token: the end-of-text token is used for padding, and masked.")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = load_config(source).get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or math.inf
        self.length = recipe.data.length or int(min(LENGTH, positions))
        check_fit(config, self.tokenizer, self.length)
        self._check_model()
        Skeleton(source).check_finite()  # before the rows are read: that may take long
        self.report("Reading the rows", 0, 0)
        examples = read_examples(recipe.data, self.tokenizer, pairs=recipe.method != "sft")
        self.ignored = examples.ignored
        if self.ignored:
            said = ", ".join(f"{what}: {count}" for what, count in self.ignored.items())
            logger.warning("Ignored in the rows: %s.", said)
        self.rows, self.dropped = tokenised(examples.train, self.tokenizer, self.length)
        self.validation, unused = tokenised(examples.validation, self.tokenizer, self.length, field="data.validation")
        for what, dropped in (("training", self.dropped), ("validation", unused)):
            found = [f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.to_json().items() if count]
            if found:
                logger.warning("Skipped of the %s rows: %s.", what, ", ".join(found))
        self.unused = unused
        self.corrections = self._corrections()
        if self.corrections:
            words("")  # fails at once if sacrebleu is missing

    def _check_model(self) -> None:
        """Refuse requests that this model cannot fulfil, before a row or a weight is read."""
        recipe, model = self.recipe, Skeleton(self.source).model
        routers = [router for _, router in find_routers(model)]
        if recipe.router is not None and not routers:
            raise RequestError(
                "the model is dense: it has no routers.", field="router", value=recipe.router, fix="Remove it."
            )
        check_terms(model, recipe.objective, recipe.routing, routers, self.granularity)
        set_implementations(model, recipe.model, self.device)
        if recipe.lora is not None:
            lora_config(recipe.lora, model, train_routers=recipe.router != "frozen")

    @property
    def granularity(self) -> int:
        """G of an upcycled model."""
        return granularity_of(self.provenance)

    def _corrections(self) -> list[CorrectionRow]:
        """Texts to correct: from their own file, otherwise the held-out rows with references."""
        wanted, file = self.recipe.answers, self.recipe.data.corrections
        if not wanted:
            return []
        if file is not None:
            return read_corrections(file, rows=wanted)
        examples = [row.example for row in self.validation if row.example.references]
        alone = strip_instructions([one.source for one in examples], [one.task for one in examples])
        rows = [
            CorrectionRow(one.source, text, one.references, f"held-out row {number}")
            for number, (one, text) in enumerate(zip(examples, alone, strict=True), 1)
        ]
        return rows[:wanted]

    def load(self, folder: Path) -> Any:
        """The model in a folder, on the job's device, as the recipe wants it computed."""
        model = load_model(folder, device=self.device, own=True)
        check_fit(model.config.get_text_config(), self.tokenizer, self.length)
        set_implementations(model, self.recipe.model, self.device)
        return model

    def rows_a_step(self) -> int:
        """Examples of an optimiser step."""
        trainer = self.recipe.trainer
        return int(trainer["per_device_train_batch_size"]) * int(trainer.get("gradient_accumulation_steps", 1))

    def steps(self) -> int:
        """Optimiser steps of the run."""
        trainer = self.recipe.trainer
        steps = int(trainer.get("max_steps", -1))
        if steps > 0:
            return steps
        batches = len(self.rows) / int(trainer["per_device_train_batch_size"])
        batches = max(1, math.floor(batches)) if trainer.get("dataloader_drop_last") else math.ceil(batches)
        a_epoch = max(1, math.ceil(batches / int(trainer.get("gradient_accumulation_steps", 1))))
        return math.ceil(float(trainer["num_train_epochs"]) * a_epoch)

    def measured(self, model: Any, when: str) -> Measured:
        """The model on the held-out rows.

        Args:
            when: before or after, for the report.
        """
        name = f"{when} training: Measuring the held-out rows"
        answers = held_out_answers(model, self.validation, step=lambda done, total: self.report(name, done, total))
        logger.info("%s: held-out loss %.4f", when, answers.loss)
        return Measured(answers, router_state(model, self.validation), self._scores(model, when))

    def _scores(self, model: Any, when: str) -> dict[str, Any] | None:
        """How well the model corrects held-out texts, compared with leaving them unchanged."""
        if not self.corrections:
            return None
        data = self.recipe.data
        asking = CorrectionPrompt(data.template, chat=data.chat)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf

        def length(text: str) -> int:
            return len(self.tokenizer(text)["input_ids"])

        asked = [len(prompt_ids(self.tokenizer, asking.ask(row.instructed))) for row in self.corrections]
        new = max(length(text) for row in self.corrections for text in (row.source, *row.references))
        rows = [row for row, given in zip(self.corrections, asked, strict=True) if given + new <= positions]
        if not rows:
            logger.warning("No text leaves room for a correction of %d tokens, so none is scored.", new)
            return None
        scores = score_corrections(
            model,
            self.tokenizer,
            rows,
            batch_size=16,
            max_new_tokens=new,
            prompt=asking,
            report=within(self.report, f"{when} training: "),
        )
        return {**scores.to_json(), "left_out": len(self.corrections) - len(rows)}
