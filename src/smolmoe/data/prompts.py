"""Corrections as rows, and the conversion of a text to correct to a model's input.

Sampling, scoring and training put the same template around a text. Files of rows and of preference pairs contain texts
without the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.vocabulary import UnknownTokenError
from smolmoe.data.messages import has_template
from smolmoe.data.tally import Tally, whole_text
from smolmoe.data.text import is_empty, read_rows
from smolmoe.errors import DataError, RequestError, SourceError

Messages = list[dict[str, str]]
PLACE = "{prompt}"
# The tasks of CoEdIT (arXiv 2305.09857), all of whose sources begin with an instruction and a colon.
INSTRUCTED_TASKS = ("gec", "simplification", "clarity", "coherence", "formality", "neutralize", "paraphrase")
LONGEST_INSTRUCTION = 10  # words; a longer beginning up to a colon is part of the text
REFERENCES = "refs"


@dataclass(frozen=True)
class CorrectionPrompt:
    """The prompt format of a text to correct, and of its answer.

    Attributes:
        template: the model's input, with `{prompt}` for the text; its end should be the end of a token. The answer
            follows directly, and then the end-of-text token.
        chat: send it as a user's message through the tokenizer's chat template.

    Raises:
        RequestError: the template does not contain `{prompt}` exactly once.
    """

    template: str = PLACE + "\n"
    chat: bool = False

    def __post_init__(self) -> None:
        if self.template.count(PLACE) != 1:
            raise RequestError(
                f"must contain {PLACE} exactly once.",
                field="prompt_template",
                value=self.template,
                fix=f'As "{PLACE}\\n".',
            )

    def ask(self, source: str) -> str | Messages:
        """The model's input: a text, or with `chat` the messages."""
        text = self.template.replace(PLACE, source)
        return [{"role": "user", "content": text.strip()}] if self.chat else text

    def row(self, source: str) -> str | Messages:
        """The prompt in a file of preference pairs: a text without the template, or with `chat` the messages."""
        return self.ask(source) if self.chat else source

    def answer(self, target: str) -> str | Messages:
        """An answer in a file of preference pairs; TRL adds the end-of-text token."""
        return [{"role": "assistant", "content": target}] if self.chat else target


def prompt_ids(tokenizer: Any, prompt: str | Messages, where: str = "") -> list[int]:
    """The tokens of a prompt, with those that a chat template or the tokenizer adds before it.

    Args:
        where: the place of its row, for errors.

    Raises:
        SourceError: messages, for a tokenizer without a chat template.
        DataError: it has no tokens, or one that the model does not have.
    """
    try:
        if isinstance(prompt, str):
            ids = list(tokenizer(prompt)["input_ids"])
        else:
            check_chat(tokenizer)
            ids = list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
    except UnknownTokenError as error:
        raise (error.at(where, "prompt", error.value) if where else error) from None
    if not ids:
        raise DataError("the prompt contains no tokens.", field="prompt", value=prompt)
    return ids


def check_chat(tokenizer: Any) -> None:
    """Raise SourceError if the tokenizer has no chat template."""
    if not has_template(tokenizer):
        raise SourceError(
            "the model's tokenizer has no chat template.", field="chat", value=True, fix="Use a template only."
        )


@dataclass(frozen=True)
class CorrectionRow:
    """A text and its corrections by people.

    Attributes:
        instructed: the text with its instruction, as the model gets it ("Fix grammar: He go.").
        source: the text alone ("He go.").
        references: corrections, each once; the first is the one to train on.
        where: its place in the file.
    """

    instructed: str
    source: str
    references: tuple[str, ...]
    where: str = ""


def read_corrections(
    path: str | Path,
    *,
    source_column: str = "src",
    target_column: str = "tgt",
    references_column: str | None = None,
    rows: int | None = None,
) -> list[CorrectionRow]:
    """The corrections of a file of rows, in its order; rows without a text or a correction are skipped, and logged.

    `strip_instructions` finds the instruction.

    Args:
        references_column: a list of further references; by default "refs", if a row has it.
        rows: number of rows to take from the beginning; None takes all.

    Raises:
        DataError: a row lacks a column that is named or holds something other than text there (with its line), or there
            are no rows.
        RequestError: `rows` is below 1.
    """
    if rows is not None and rows < 1:
        raise RequestError("is out of range.", field="rows", value=rows, fix="Use at least 1.")
    required = [source_column, target_column, *([] if references_column is None else [references_column])]
    sources, references, tasks, places = [], [], [], []
    tally = Tally()
    for where, row in read_rows(path, required, (REFERENCES, "task")):
        if any(is_empty(row[column]) for column in (source_column, target_column)):
            tally.add(f'rows without "{source_column}" or "{target_column}" skipped', where)
            continue
        sources.append(whole_text(_text(row[source_column], source_column, where, path), tally, where))
        target = whole_text(_text(row[target_column], target_column, where, path), tally, where)
        further = row.get(references_column or REFERENCES)
        references.append(_references(target, further, references_column or REFERENCES, where, path))
        tasks.append(row.get("task"))
        places.append(where)
        if len(sources) == rows:
            break
    tally.log(str(path))
    if not sources:
        raise DataError("the file contains no rows.", field="data", value=str(path))
    alone = strip_instructions(sources, tasks)
    return [CorrectionRow(*values) for values in zip(sources, alone, references, places, strict=True)]


def strip_instructions(sources: Sequence[str], tasks: Sequence[Any]) -> list[str]:
    """The texts without the instructions before them.

    An instruction is the part before the first ": ", if it has at most ten words and text follows. It is removed from
    rows whose `task` is one of CoEdIT's, and from all rows of a file without tasks if all begin with an instruction and
    each instruction occurs more than once on average; from no others.
    """
    split = [_split(source) for source in sources]
    instructions = {instruction for instruction, _ in split}
    alike = not any(tasks) and "" not in instructions and 2 * len(instructions) <= len(sources)
    return [
        text if alike or task in INSTRUCTED_TASKS else source
        for source, task, (_, text) in zip(sources, tasks, split, strict=True)
    ]


def _split(source: str) -> tuple[str, str]:
    """Instruction and text; without an instruction, no instruction and the full text."""
    before, colon, after = source.partition(": ")
    is_instruction = bool(colon and after.strip()) and 0 < len(before.split()) <= LONGEST_INSTRUCTION
    return (before, after) if is_instruction else ("", source)


def _text(value: Any, column: str, where: str, path: str | Path) -> str:
    if not isinstance(value, str):
        problem = f'{where}: "{column}" is a {type(value).__name__}, not a string.'
        raise DataError(problem, field="data", value=str(path))
    return value


def _references(target: str, further: Any, column: str, where: str, path: str | Path) -> tuple[str, ...]:
    if further is None:
        return (target,)
    if not isinstance(further, list | tuple):
        problem = f'{where}: "{column}" is not a list of references.'
        raise DataError(problem, field="data", value=str(path))
    texts = [_text(text, column, where, path) for text in further if not is_empty(text)]
    return tuple(dict.fromkeys((target, *texts)))
