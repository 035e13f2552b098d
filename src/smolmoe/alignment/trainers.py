"""TRL's trainers (1.16) for tokenised rows, without network access and model cards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from smolmoe.alignment.libraries import require
from smolmoe.alignment.tokens import Row

_trl = require("trl")
_dpo = require("trl.trainer.dpo_trainer")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the warning that CPO is experimental, which its module path in TRL says
    _cpo = require("trl.experimental.cpo")
_SFT: Any = _trl.SFTTrainer
_DPO: Any = _trl.DPOTrainer
_CPO: Any = _cpo.CPOTrainer

IGNORED = -100


class ReadyRows:
    """For a trainer of TRL: takes tokenised rows, and computes its loss without a second pass for outputs."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # TRL runs the model again if outputs are requested, which nothing here reads.
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[misc]
        return (loss, None) if return_outputs else loss

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: `smolmoe.json` describes the model."""

    def _send_telemetry(self) -> None:
        """No telemetry."""


class SupervisedTrainer(ReadyRows, _SFT):
    """SFT on answers only."""


class PreferenceTrainer(ReadyRows, _DPO):
    """DPO (arXiv 2305.18290)."""


class ContrastiveTrainer(ReadyRows, _CPO):
    """CPO (arXiv 2401.08417)."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return feature


def show_backbone(model: Any) -> None:
    """Let TRL, which puts its own head on a model's backbone, find the backbone in our generic class.

    That class contains a causal LM and is its own `base_model`. Nothing is registered or saved.
    """
    if model.base_model is not model or not hasattr(model, "lm"):
        return
    model.__dict__["_backbone"] = model.lm.base_model
    model.base_model_prefix = "_backbone"


def dataset(rows: Sequence[Row], method: str) -> Any:
    """The rows in the format of the method's trainer."""
    make = {"sft": _supervised, "dpo": _preference, "cpo": _contrastive}[method]
    return require("datasets").Dataset.from_list([make(row) for row in rows])


def collator(rows: Sequence[Row], method: str, tokenizer: Any, arguments: Any) -> Any | None:
    """A collator that masks the unlearned parts of answers in DPO's loss; None if all answers are learned completely.

    TRL's collator supports only such answers.
    """
    if method != "dpo" or not any(row.chosen_loss or row.rejected_loss for row in rows):
        return None
    own: Any = _dpo.DataCollatorForPreference

    class PartialAnswers(own):
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            sides = [(example, side) for side in ("chosen", "rejected") for example in examples]
            for mask, (example, side) in zip(batch["completion_mask"], sides, strict=True):
                start, loss = len(example["prompt_ids"]), example[f"{side}_loss"]
                mask[start : start + len(loss)] *= mask.new_tensor(loss)
            return batch

    return PartialAnswers(
        pad_token_id=tokenizer.pad_token_id,
        max_length=arguments.max_length,
        truncation_mode=arguments.truncation_mode,
        pad_to_multiple_of=arguments.pad_to_multiple_of,
    )


def _labels(row: Row, side: str) -> list[int]:
    """The answer's tokens, with those that are not learned ignored."""
    answer, loss = getattr(row, side), getattr(row, f"{side}_loss")
    return [token if not loss or loss[at] else IGNORED for at, token in enumerate(answer)]


def _supervised(row: Row) -> dict[str, list[int]]:
    return {"input_ids": [*row.prompt, *row.chosen], "labels": [IGNORED] * len(row.prompt) + _labels(row, "chosen")}


def _preference(row: Row) -> dict[str, list[int]]:
    found = {"prompt_ids": [*row.prompt], "chosen_ids": [*row.chosen], "rejected_ids": [*row.rejected]}
    for side in ("chosen", "rejected"):
        found[f"{side}_loss"] = [int(token != IGNORED) for token in _labels(row, side)]
    return found


def _contrastive(row: Row) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for side, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
        found[f"{side}_input_ids"] = [*row.prompt, *answer]
        found[f"{side}_attention_mask"] = [1] * (len(row.prompt) + len(answer))
        found[f"{side}_labels"] = [IGNORED] * len(row.prompt) + _labels(row, side)
    return found
