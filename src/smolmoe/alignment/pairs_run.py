"""Answers sampled from a model, made into preference pairs, in one folder."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.alignment.pairs import Answered, PairsFolder, PairsReport, Shard
from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.devices import pick_device
from smolmoe.core.files import growing
from smolmoe.core.progress import Progress
from smolmoe.data.prompts import CorrectionPrompt, CorrectionRow, prompt_ids, read_corrections
from smolmoe.data.sources import file_hash
from smolmoe.inference.sampling import answering_model, answering_tokenizer, check_room, sample_answers
from smolmoe.moe.loading import load_config
from smolmoe.recipe.pairs import PairsRecipe

BATCHES = 4  # per shard: the most that a kill can lose
logger = logging.getLogger(__name__)


def make_pairs(
    recipe: PairsRecipe, *, resume: bool = False, overwrite: bool = False, report: Progress | None = None
) -> PairsReport:
    """Answer each prompt at two temperatures, and prefer the answer nearer to a reference, by edit distance.

    Writes `pairs.jsonl` (prompt, chosen, rejected, score_chosen, score_rejected; the prompt without the template,
    which the trainer adds), `report.json`, and the samples in shards of `BATCHES` batches. A prompt's answers are
    sampled from the seed and the prompt's index in the file. Shards and batches are the same in a resumed run: on the
    same machine it writes exactly the pairs of an uninterrupted run.

    Args:
        resume: continue a stopped run of the same recipe.
        overwrite: start over if the folder contains pairs.

    Raises:
        OutputError: the folder contains something else, or a run of another recipe.
        DataError: rows without the named columns or with empty texts, a prompt that leaves no room in the model's
            positions, or no prompt whose answers differ in their distance.
        SourceError: no such model, or it has no tokenizer.
        RequestError: a template without a place for the prompt, or no such device.
    """
    with growing(recipe.out):
        return _make_pairs(recipe, resume, overwrite, report)


def _make_pairs(recipe: PairsRecipe, resume: bool, overwrite: bool, report: Progress | None) -> PairsReport:
    pick_device(recipe.device)
    checkpoint = open_checkpoint(recipe.model, field="model")
    prompt = CorrectionPrompt(recipe.template, recipe.chat)
    rows = _draw(recipe)
    tokenizer = answering_tokenizer(checkpoint.folder)
    ids = {index: prompt_ids(tokenizer, prompt.ask(row.instructed), row.where) for index, row in rows.items()}
    check_room(
        list(ids.values()), recipe.max_new_tokens, load_config(checkpoint.folder), [row.where for row in rows.values()]
    )
    asked = recipe.model_dump(mode="json", exclude={"model", "data", "out", "device"})
    asked["model_sha256"], asked["data_sha256"] = fingerprint(checkpoint), file_hash(Path(recipe.data))
    size = BATCHES * recipe.batch_size
    order = sorted(ids, key=lambda index: (len(ids[index]), index))
    parts = [order[first : first + size] for first in range(0, len(order), size)]
    folder = PairsFolder(recipe.out, asked, resume=resume, overwrite=overwrite)
    missing = [number for number in range(len(parts)) if not folder.has_shard(number)]
    if missing:
        answer = _Answering(checkpoint.folder, tokenizer, recipe, prompt, rows, ids)
        for number in missing:
            if report is not None:
                report("Answering", number * size, len(order))
            shard = answer(parts[number])
            folder.write_shard(number, shard)
            if number == 0 and all(one.texts[0] == one.texts[1] for one in shard.answered):
                logger.warning("No prompt of the first shard got two different answers: raise a temperature.")
    return folder.finish(len(parts), asked=recipe.prompts, temperatures=recipe.temperatures, settings=asked)


def run_pairs(recipe: PairsRecipe, *, report: Progress | None = None) -> dict[str, Any]:
    """Write the pairs; returns the report."""
    resume = recipe.out.is_dir() and any(recipe.out.iterdir())
    return make_pairs(recipe, resume=resume, report=report).to_json()


class _Answering:
    """A model that answers prompts at both temperatures."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        recipe: PairsRecipe,
        prompt: CorrectionPrompt,
        rows: dict[int, CorrectionRow],
        ids: dict[int, list[int]],
    ):
        self.model = answering_model(folder, recipe.device)
        self.tokenizer, self.recipe, self.prompt, self.rows, self.ids = tokenizer, recipe, prompt, rows, ids

    def __call__(self, indices: Sequence[int]) -> Shard:
        """Two answers to each row of these indices."""
        both = [
            sample_answers(
                self.model,
                self.tokenizer,
                [self.ids[index] for index in indices],
                max_new_tokens=self.recipe.max_new_tokens,
                batch_size=self.recipe.batch_size,
                temperature=temperature,
                seeds=[(self.recipe.seed, index, which) for index in indices],
            )
            for which, temperature in enumerate(self.recipe.temperatures)
        ]
        answered = []
        for at, index in enumerate(indices):
            first, second = (samples.texts[at].strip() for samples in both)
            row = self.rows[index]
            answers = (self.prompt.answer(first), self.prompt.answer(second))
            answered.append(Answered(index, self.prompt.row(row.instructed), answers, (first, second), row.references))
        return Shard(
            tuple(answered),
            seconds=round(sum(samples.seconds for samples in both), 3),
            new_tokens=sum(samples.new_tokens for samples in both),
            cut=sum(samples.cut for samples in both),
        )


def _draw(recipe: PairsRecipe) -> dict[int, CorrectionRow]:
    """The sampled rows, by their index in the file."""
    rows = read_corrections(
        recipe.data,
        source_column=recipe.source_column,
        target_column=recipe.target_column,
        references_column=recipe.references_column,
    )
    chosen = random.Random(recipe.seed).sample(range(len(rows)), min(recipe.prompts, len(rows)))
    return {index: rows[index] for index in sorted(chosen)}
