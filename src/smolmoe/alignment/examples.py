"""Rows of all usual schemas as examples: a prompt, an answer, and in preference data a worse answer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from smolmoe.alignment.chats import Renderer, Turns, further_keys, shared, starts_with
from smolmoe.alignment.schemas import check_label, columns_of, format_of, required_columns
from smolmoe.core.files import expanded
from smolmoe.data.embedded import is_held_out
from smolmoe.data.folders import find_files, say_unread
from smolmoe.data.formats import check_columns, rows_of
from smolmoe.data.forms import Conversation
from smolmoe.data.messages import (
    KNOWN_ROLES,
    Message,
    NotTextError,
    Unused,
    bad,
    is_chat,
    messages_of,
    parsed,
    parsed_chat,
)
from smolmoe.data.presets import PRESETS
from smolmoe.data.prompts import CorrectionPrompt
from smolmoe.data.sources import first_columns
from smolmoe.data.tally import whole_text
from smolmoe.data.text import is_empty
from smolmoe.errors import DataError
from smolmoe.recipe.align import AlignDataRecipe

_ASSISTANT = "\n\nAssistant:"  # ends the prompt in texts of complete dialogues (Anthropic/hh-rlhf)


@dataclass(frozen=True)
class Example:
    """One prompt as the model reads it, and its answers.

    Attributes:
        prompt: everything before the answer, ready to be tokenised.
        chosen: the answer; of preference data the better one.
        rejected: the worse answer; None in supervised data.
        source: the prompt as in the row.
        references: correct answers, if the rows have them.
        task: the row's task, if it has one.
        chosen_turns, rejected_turns: the answer in parts, each with whether it is learned; empty if all are.
        left_out: why nothing can be learned from it (a key of `REASONS`); None if something can.
    """

    prompt: str
    chosen: str
    rejected: str | None
    source: str
    references: tuple[str, ...] = ()
    task: str | None = None
    chosen_turns: Turns = ()
    rejected_turns: Turns = ()
    left_out: str | None = None


@dataclass(frozen=True)
class Examples:
    """Training and validation examples; no prompt is in both.

    Attributes:
        ignored: content of the rows that no example uses (columns, keys of messages, turns, roles) -> how often.
    """

    train: list[Example]
    validation: list[Example]
    ignored: dict[str, int] = field(default_factory=dict)


def read_examples(recipe: AlignDataRecipe, tokenizer: Any, *, pairs: bool) -> Examples:
    """The rows of a recipe's data; a row without usable content becomes an example with the reason.

    A row of a chat without preferences gives one example for each turn of the assistant.

    Args:
        tokenizer: whose chat template renders chats, unless the recipe gives one.
        pairs: whether every row must have a rejected answer.

    Raises:
        DataError: no such file, missing columns, values that are not text, no rows, or no rows left on a side.
        RequestError: a chat and no template, or a template that does not render it.
    """
    reader = _Reader(recipe, tokenizer, pairs)
    rows = list(reader.read(recipe.train))
    if recipe.validation:
        validation = list(reader.read(recipe.validation))
        own = {example.prompt for example in validation if example.left_out is None}
        train = [example for example in rows if example.prompt not in own]
    else:
        held_out = [example.left_out is None and is_held_out(example.prompt, recipe.held_out) for example in rows]
        validation = [example for example, held in zip(rows, held_out, strict=True) if held]
        train = [example for example, held in zip(rows, held_out, strict=True) if not held]
    for side, found in (("train", train), ("validation", validation)):
        if not found:
            raise DataError(
                f"none of {len(rows)} rows is left for {'training' if side == 'train' else 'validation'}.",
                field=f"data.{side}",
                value=", ".join(getattr(recipe, side) or recipe.train),
                fix="Use more rows, set data.validation to a separate file, or set data.held_out.",
            )
    return Examples(train, validation, reader.unused.to_json())


def _nothing(reason: str, prompt: str = "") -> Example:
    return Example(prompt, "", None, "", left_out=reason)


class _Reader:
    def __init__(self, recipe: AlignDataRecipe, tokenizer: Any, pairs: bool):
        self.recipe = recipe
        self.pairs = pairs
        self.unused = Unused()
        self.renderer = Renderer(tokenizer, recipe.chat_template)

    def read(self, paths: Sequence[str]) -> Iterator[Example]:
        for path in paths:
            place = expanded(path)
            found = find_files(place) if os.path.exists(place) else None
            if found is None:
                raise DataError("no such file.", field="data", value=path, fix="Use the path of a file.")
            say_unread(found)
            for file in found.files:
                yield from self._file(file)

    def _file(self, file: Path) -> Iterator[Example]:
        columns = first_columns(file)
        kind = format_of(self.recipe, columns, file) if columns else "prompt"
        if kind == "oasst":
            yield from self._trees(file)
            return
        for where, values in rows_of(file, (), None):
            # Untyped tables have NaN for empty cells.
            row = {column: None if value != value else value for column, value in values.items()}
            if all(value is None for value in row.values()):
                yield _nothing("empty")
                continue
            named = columns_of(self.recipe, kind, row)
            required = required_columns(kind, row, named, pairs=self.pairs)
            check_columns(tuple(row), required, "columns", file, where=f"{where}: ")
            if self.recipe.format is None:
                check_label(row, where, file)
            values = {role: row.get(column) for role, column in named.items()} | {"task": row.get("task")}
            if kind == "coedit":  # the answer of a correction is a reference
                values["references"] = [values["completion"], *(values["references"] or ())]
            used = {*named.values(), "task"} - (set() if self.pairs or kind == "pairs" else {named.get("rejected")})
            for column, value in row.items():
                if column not in used and not is_empty(value):
                    self.unused.add(f'column "{column}"')
            try:
                yield from self._examples(values, f"{file}, {where}")
            except NotTextError:
                yield _nothing("not_text")

    # -- examples of a row ---------------------------------------------------------------------------------------

    def _examples(self, values: Mapping[str, Any], where: str) -> Iterator[Example]:
        is_pair = values.get("rejected") is not None and values.get("chosen") is not None
        chosen, rejected = values.get("chosen"), values.get("rejected") if self.pairs else None
        if not self.pairs and values.get("completion") is not None:
            chosen = values["completion"]
        chosen, rejected = parsed_chat(chosen), parsed_chat(rejected)
        if "messages" not in values and "prompt" not in values:  # a pair that begins alike
            if not is_pair:
                yield _nothing("empty")
                return
            yield self._alike(chosen, parsed_chat(values["rejected"]), values, where)
            return
        prompt = parsed_chat(values["messages"]) if "messages" in values else values["prompt"]
        if is_empty(prompt) or prompt == [] or (self.pairs and (chosen is None or rejected is None)):
            yield _nothing("empty")
            return
        if "messages" in values and "completion" not in values and chosen is None:
            if not is_chat(prompt):
                raise bad(where, f"a {type(prompt).__name__} instead of messages")
            yield from self._turns(self._before(prompt, values, where), values, where)
            return
        if chosen is None or (isinstance(chosen, list) and not chosen):
            yield _nothing("empty")
        elif is_chat(prompt) or is_chat(chosen) or is_chat(rejected):
            before = self._before(prompt, values, where)
            yield self._chat(before, chosen, rejected, values, where)
        else:
            yield self._text(prompt, chosen, rejected, values, where)

    def _text(self, prompt: Any, chosen: Any, rejected: Any, values: Mapping[str, Any], where: str) -> Example:
        """A plain prompt and plain answers."""
        answers = {"the answer": chosen, **({"rejected": rejected} if self.pairs else {})}
        for name, answer in {"the prompt": prompt, **answers}.items():
            if not isinstance(answer, str):
                raise bad(where, f"{name} is a {type(answer).__name__}, not a string")
        tally = self.unused.tally
        prompt, chosen = (whole_text(text, tally, where) for text in (prompt, chosen))
        rejected = None if rejected is None else whole_text(rejected, tally, where)
        if not is_empty(context := values.get("context")):
            if not isinstance(context, str):
                raise bad(where, f"the context is a {type(context).__name__}, not a string")
            prompt = f"{prompt}\n{whole_text(context, tally, where)}"
        references, task = tuple(dict.fromkeys(_texts(values.get("references")))), values.get("task")
        asked = CorrectionPrompt(self.recipe.template, chat=self.recipe.chat).ask(prompt)
        if isinstance(asked, str):
            if not is_empty(values.get("tools")):
                self.unused.add('column "tools" (plain prompts do not support it)')
            asked = self._with_system(asked, values, where)
            return Example(asked, chosen, rejected, prompt, references, task)
        before = self._before(list(asked), values, where)
        found = self._chat(before, chosen, rejected, values, where)
        return replace(found, source=prompt, references=references, task=task)

    def _with_system(self, prompt: str, values: Mapping[str, Any], where: str) -> str:
        system = values.get("system")
        if is_empty(system):
            return prompt
        if not isinstance(system, str):
            raise bad(where, f"the system prompt is a {type(system).__name__}, not a string")
        return f"{whole_text(system, self.unused.tally, where)}\n\n{prompt}"

    def _before(self, prompt: Any, values: Mapping[str, Any], where: str) -> list[Message]:
        """The messages of a prompt, the row's system prompt in front."""
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        messages = messages_of(prompt, where, self.unused)
        system = self._with_system("", values, where).removesuffix("\n\n")
        if not system:
            return messages
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"].strip() != system.strip():
                self.unused.add("system prompts (the chats already have one)")
            return messages
        return [{"role": "system", "content": system}, *messages]

    # -- chats ---------------------------------------------------------------------------------------------------

    def _turns(self, messages: list[Message], values: Mapping[str, Any], where: str) -> Iterator[Example]:
        """An example for each answer of a chat."""
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            unknown = any(message["role"] not in KNOWN_ROLES for message in messages)
            yield _nothing("unknown_role" if unknown else "empty" if not messages else "no_answer")
            return
        if answers[-1] + 1 < len(messages):
            self.unused.add("turns after the last answer", len(messages) - answers[-1] - 1)
        with_keys = _Keys(self.renderer, self.unused, messages, values.get("tools"))
        for at in answers:
            if at == 0:
                yield _nothing("no_prompt")
                continue
            yield self._rendered(messages[:at], [messages[at]], None, with_keys.tools, where)
        with_keys.say()

    def _chat(
        self, before: list[Message], chosen: Any, rejected: Any, values: Mapping[str, Any], where: str
    ) -> Example:
        """One example of a prompt and answers, each of which may repeat the prompt."""
        answers = [messages_of(answer, where, self.unused) for answer in (chosen, rejected) if answer is not None]
        before, answers = _apart(before, answers)
        unknown = any(message["role"] not in KNOWN_ROLES for answer in answers for message in answer)
        for number, answer in enumerate(answers):
            last = max((at for at, message in enumerate(answer) if message["role"] == "assistant"), default=-1)
            if last < 0:
                return _nothing("unknown_role" if unknown else "no_answer")
            if last + 1 < len(answer):
                self.unused.add("turns after the last answer", len(answer) - last - 1)
            answers[number] = answer[: last + 1]
        if not before:
            return _nothing("no_prompt")
        if any(answer[0]["role"] != "assistant" for answer in answers):
            return _nothing("prompts_differ")
        with_keys = _Keys(self.renderer, self.unused, [*before, *chain(*answers)], values.get("tools"))
        found = self._rendered(before, answers[0], answers[1] if len(answers) > 1 else None, with_keys.tools, where)
        with_keys.say()
        return found

    def _rendered(
        self, before: list[Message], chosen: list[Message], rejected: list[Message] | None, tools: Any, where: str
    ) -> Example:
        prompt, better = self.renderer.pieces(before, chosen, tools, where)
        worse = None if rejected is None else self.renderer.pieces(before, rejected, tools, where)[1]
        reason = None
        if not any(message["content"].strip() for message in before if message["role"] != "system"):
            reason = "no_prompt"
        elif not any(learned for _, learned in better):
            reason = "weight_0" if all(m.get("weight") == 0 for m in chosen if m["role"] == "assistant") else "empty"
        if reason is not None:
            return _nothing(reason, prompt)
        for message in (*chosen, *(rejected or ())):
            if message.get("weight") not in (None, 0, 1):
                self.unused.add("weights of turns other than 0 and 1")
        return Example(
            prompt,
            "".join(text for text, _ in better),
            None if worse is None else "".join(text for text, _ in worse),
            before[-1]["content"],
            chosen_turns=() if all(learned for _, learned in better) else better,
            rejected_turns=() if worse is None or all(learned for _, learned in worse) else worse,
        )

    def _alike(self, chosen: Any, rejected: Any, values: Mapping[str, Any], where: str) -> Example:
        """Two answers whose shared beginning is the prompt (as `trl.extract_prompt` has it)."""
        if is_chat(chosen) and is_chat(rejected):
            better, worse = (messages_of(side, where, self.unused) for side in (chosen, rejected))
            end = shared(better, worse)
            if end == len(better) == len(worse):
                return _nothing("equal")
            before = self._before([*better[:end]], values, where)
            return self._chat(before, better[end:], worse[end:] if self.pairs else None, values, where)
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            if not isinstance(side, str):
                raise bad(where, f"{name} is a {type(side).__name__}, not a string")
        chosen, rejected = (whole_text(side, self.unused.tally, where) for side in (chosen, rejected))
        prompt = _shared_text(chosen, rejected)
        if not prompt.strip() or chosen == rejected:
            return _nothing("equal" if chosen == rejected else "no_prompt")
        asked = self._with_system(prompt, values, where)
        better, worse = (side[len(prompt) :] for side in (chosen, rejected))
        return Example(asked, better, worse if self.pairs else None, prompt)

    def _trees(self, file: Path) -> Iterator[Example]:
        """The conversations of oasst's flat rows, as training reads them."""
        preset = PRESETS["oasst1"]
        required = (*preset.columns, *(("chosen", "rejected") if self.pairs else ()))
        assert preset.conversations is not None
        found: Iterator[Conversation] = preset.conversations(row for _, row in rows_of(file, required, None))
        for number, one in enumerate(found, 1):
            if one.unused:
                self.unused.add("replies that are not the best-ranked", one.unused)
            turns = [{"role": role, "content": text} for role, text in one.turns]
            messages = messages_of(turns, str(file), self.unused)
            yield from self._turns(messages, {}, f"{file}, conversation {number}")


class _Keys:
    """The keys of a row's messages, and its tools, that the chat template does not use."""

    def __init__(self, renderer: Renderer, unused: Unused, messages: Sequence[Message], tools: Any):
        self.renderer, self.unused, self.messages = renderer, unused, messages
        found = parsed(tools)
        self.tools = [found] if isinstance(found, dict) else found if isinstance(found, list) else None
        self.given = not is_empty(tools) and found not in ([], {})
        renderer.shown = set()

    def say(self) -> None:
        for key in sorted(further_keys(self.messages) - self.renderer.shown):
            count = sum(key in message for message in self.messages)
            self.unused.add(f'"{key}" of messages (the chat template does not use it)', count)
        if self.given and "tools" not in self.renderer.shown:
            self.unused.add('column "tools" (the chat template does not use it)')


def _apart(before: list[Message], answers: list[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """Remove a prompt that the answers repeat from them, and add the beginning that they share to the prompt."""
    first = answers[0]
    if before and before[0]["role"] != "system" and first and first[0]["role"] == "system":
        with_system = [first[0], *before]
        if all(starts_with(answer, with_system) for answer in answers):
            before = with_system
    plain = before[1:] if before and before[0]["role"] == "system" else before
    for number, answer in enumerate(answers):
        repeated = next((part for part in (before, plain) if part and starts_with(answer, part)), [])
        answers[number] = answer[len(repeated) :]
    if len(answers) == 2 and all(answer and answer[0]["role"] != "assistant" for answer in answers):
        end = shared(*answers)
        before, answers = [*before, *answers[0][:end]], [answer[end:] for answer in answers]
    elif len(answers) == 1:
        while answers[0] and answers[0][0]["role"] != "assistant":
            before, answers = [*before, answers[0][0]], [answers[0][1:]]
    return before, answers


def _shared_text(one: str, other: str) -> str:
    """The common beginning of both, up to the beginning of an answer or the end of a word."""
    letters = enumerate(zip(one, other, strict=False))
    beginning = one[: next((at for at, both in letters if both[0] != both[1]), min(len(one), len(other)))]
    if _ASSISTANT in beginning:
        return beginning[: beginning.rindex(_ASSISTANT) + len(_ASSISTANT)]
    ends = (text[len(beginning) :][:1] for text in (one, other))
    if beginning[-1:].isalnum() and any(end.isalnum() for end in ends):
        beginning = beginning[: max(beginning.rfind(space) for space in " \n\t") + 1]
    return beginning[:-1] if beginning.endswith(" ") else beginning


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list | tuple) else ()
