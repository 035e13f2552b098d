"""Rows of any of the usual schemas as examples: a prompt, an answer, and in preference data a worse one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.data.embedded import is_held_out
from smolmoe.data.formats import check_columns
from smolmoe.data.prompts import CorrectionPrompt
from smolmoe.data.text import read_rows
from smolmoe.errors import DataError, RequestError
from smolmoe.recipe.align import AlignDataRecipe

# Role -> column, as data sets call them.
_PAIR = {"chosen": "chosen", "rejected": "rejected"}
COLUMNS: dict[str, dict[str, str]] = {
    "coedit": {"prompt": "src", "completion": "tgt", "references": "refs", **_PAIR},
    "prompt": {"prompt": "prompt", "completion": "completion", "references": "references", **_PAIR},
    "messages": {"messages": "messages", **_PAIR},
    "sharegpt": {"messages": "conversations", **_PAIR},
}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One prompt as the model reads it, and what to answer.

    Attributes:
        prompt: with everything that comes before the answer, ready to be tokenised.
        chosen: the answer; of preference data the better one.
        rejected: the worse answer; None in supervised data.
        source: the prompt as it stands in the row.
        references: answers that count as right, where the rows give them.
        task: what the row says it is, if it does.
    """

    prompt: str
    chosen: str
    rejected: str | None
    source: str
    references: tuple[str, ...] = ()
    task: str | None = None


@dataclass(frozen=True)
class Examples:
    """What is trained on, and what is measured on; no prompt is in both."""

    train: list[Example]
    validation: list[Example]


def read_examples(recipe: AlignDataRecipe, tokenizer: Any, *, pairs: bool) -> Examples:
    """The rows of a recipe's data.

    A row of a chat without preferences gives one example for each turn of the assistant.

    Args:
        tokenizer: whose chat template renders chats, unless the recipe gives one.
        pairs: whether every row must have a rejected answer.

    Raises:
        DataError: no such file, columns that are not there, values that are no text, no rows, or none left on a side.
        RequestError: a chat and no template, or a template that does not render it.
    """
    reader = _Reader(recipe, tokenizer, pairs)
    rows = list(reader.read(recipe.train))
    if recipe.validation:
        validation = list(reader.read(recipe.validation))
        own = {example.prompt for example in validation}
        train = [example for example in rows if example.prompt not in own]
    else:
        validation = [example for example in rows if is_held_out(example.prompt, recipe.held_out)]
        train = [example for example in rows if not is_held_out(example.prompt, recipe.held_out)]
    for side, found in (("train", train), ("validation", validation)):
        if not found:
            raise DataError(
                f"of {len(rows)} rows none is left for {'training' if side == 'train' else 'measuring'}.",
                field=f"data.{side}",
                value=", ".join(getattr(recipe, side) or recipe.train),
                fix="Give more rows, or a file of its own as data.validation.",
            )
    return Examples(train, validation)


class _Reader:
    def __init__(self, recipe: AlignDataRecipe, tokenizer: Any, pairs: bool):
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.pairs = pairs
        self.template = None if recipe.chat_template is None else _template(recipe.chat_template)

    def read(self, files: Sequence[str]) -> Iterator[Example]:
        columns = sorted(
            {"task", *self.recipe.columns.values(), *(name for of in COLUMNS.values() for name in of.values())}
        )
        for file in files:
            kind: str | None = self.recipe.format
            for where, row in read_rows(file, (), columns):
                kind = kind or self._format(row, file)
                named = {**COLUMNS[kind], **self.recipe.columns}
                check_columns(tuple(row), [named[role] for role in self._required(kind, row, named)], "columns", file)
                values = {role: row.get(column) for role, column in named.items()} | {"task": row.get("task")}
                if kind == "coedit":  # the answer of a correction is a reference
                    values["references"] = [values["completion"], *(values["references"] or ())]
                yield from self._examples(values, f"{file}, {where}")

    def _format(self, row: Mapping[str, Any], file: str) -> str:
        if self.recipe.columns:
            return "messages" if "messages" in self.recipe.columns else "prompt"
        found = next((kind for kind, named in COLUMNS.items() if next(iter(named.values())) in row), None)
        if found is None:
            raise DataError(
                f"its columns ({', '.join(row) or 'none'}) are of no format that is known.",
                field="data.format",
                value=file,
                fix="Say which are which, e.g. --set data.columns='{prompt: question, completion: answer}'.",
            )
        return found

    def _required(self, kind: str, row: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
        first = next(iter(COLUMNS[kind]))
        if self.pairs:
            return [first, "chosen", "rejected"]
        if first == "messages" or (named["chosen"] in row and named["completion"] not in row):
            return [first]
        return [first, "completion"]

    def _examples(self, values: Mapping[str, Any], where: str) -> Iterator[Example]:
        prompt = values["messages"] if "messages" in values else values["prompt"]
        chosen = values.get("completion") if values.get("completion") is not None else values["chosen"]
        rejected = values["rejected"] if self.pairs else None
        if self.pairs:
            chosen = values["chosen"]
        if isinstance(prompt, str):
            for name, answer in {"the answer": chosen, **({"rejected": rejected} if self.pairs else {})}.items():
                if not isinstance(answer, str):
                    raise _bad(where, f"{name} is a {type(answer).__name__}, not a string")
            references = tuple(dict.fromkeys(_texts(values["references"])))
            text, answers = self._asked(prompt, chosen, rejected, where)
            yield Example(text, answers[0] or "", answers[1], prompt, references, values["task"])
            return
        messages = _messages(prompt, where)
        if chosen is None:
            for at, message in enumerate(messages):
                if message["role"] == "assistant" and at:
                    yield self._chat(messages[:at], message, None, where)
            return
        worse = None if rejected is None else _messages(rejected, where)[-1]
        yield self._chat(messages, _messages(chosen, where)[-1], worse, where)

    def _asked(self, prompt: str, chosen: Any, rejected: Any, where: str) -> tuple[str, tuple[str | None, str | None]]:
        """A plain prompt as the model gets it, and the answers that follow."""
        asking = CorrectionPrompt(self.recipe.template, chat=self.recipe.chat)
        asked = asking.ask(prompt)
        if isinstance(asked, str):
            return asked, (chosen, rejected)
        answers = [None if text is None else {"role": "assistant", "content": text} for text in (chosen, rejected)]
        example = self._chat(asked, answers[0] or {}, answers[1], where)
        return example.prompt, (example.chosen, example.rejected)

    def _chat(self, before: list[Message], answer: Message, worse: Message | None, where: str) -> Example:
        prompt = self._rendered(before, where, True)
        answers: list[str | None] = []
        for message in (answer, worse):
            if message is None:
                answers.append(None)
                continue
            whole = self._rendered([*before, message], where, False)
            if not whole.startswith(prompt):
                raise RequestError(
                    "it renders a prompt differently once it is answered.",
                    field="data.chat_template",
                    value=str(self.recipe.chat_template or "the tokenizer's"),
                    fix="Give a template in which what comes before an answer does not depend on it.",
                )
            answers.append(whole[len(prompt) :])
        bos = self.tokenizer.bos_token
        # The tokenizer puts its own in front.
        prompt = prompt.removeprefix(bos) if bos and self.tokenizer("").input_ids[:1] else prompt
        return Example(prompt, answers[0] or "", answers[1], before[-1]["content"])

    def _rendered(self, messages: list[Message], where: str, is_prompt: bool) -> str:
        from jinja2 import TemplateError

        if self.template is None and not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(
                f"{where} is a chat, and the tokenizer has no template for one.",
                field="data.chat_template",
                value=None,
                fix="Give a file with a Jinja template, or prompts and completions as plain text.",
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=is_prompt, chat_template=self.template
                )
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise RequestError(
                f"it does not render {where}: {error}",
                field="data.chat_template",
                value=str(self.recipe.chat_template or "the tokenizer's"),
            ) from error


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read: {error}.", field="data.chat_template", value=str(path)) from error


def _messages(value: Any, where: str) -> list[Message]:
    """Messages of either schema; one message or a plain answer is a list of one."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise _bad(where, f"a {type(value).__name__} where messages should be")
    found = []
    for item in items:
        role = item.get("role") or item.get("from") if isinstance(item, dict) else None
        text = item.get("content", item.get("value")) if isinstance(item, dict) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise _bad(where, "a message that has no role and content (or from and value)")
        found.append({"role": _SHAREGPT_ROLES.get(role, role), "content": text})
    return found


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list | tuple) else ()


def _bad(where: str, problem: str) -> DataError:
    return DataError(f"{problem}.", field="data", value=where)
