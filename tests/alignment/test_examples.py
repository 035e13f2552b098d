"""Rows of every schema as examples and as tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import tiny_tokenizer

from smolmoe.alignment.examples import Example, Examples, read_examples
from smolmoe.alignment.tokens import fingerprint, tokenised
from smolmoe.alignment.trainers import collator, dataset
from smolmoe.errors import DataError, RequestError
from smolmoe.recipe import parse
from smolmoe.recipe.align import AlignDataRecipe

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def read(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> list[Example]:
    return read_all(folder, rows, **changes).train


def read_all(folder: Path, rows: list[dict[str, Any]], *, pairs: bool = False, **changes: Any) -> Examples:
    file, other = folder / "rows.jsonl", folder / "other.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {"chosen": "!", "rejected": "."} if pairs else {"completion": "!"}
    other.write_text(json.dumps({"prompt": "?", **answers}) + "\n")
    if changes.pop("chat", False):
        (folder / "chat.jinja").write_text(CHAT)
        changes["chat_template"] = str(folder / "chat.jinja")
    values = {"train": [str(file)], "validation": [str(other)], **changes}
    return read_examples(parse(AlignDataRecipe, values), tiny_tokenizer(), pairs=pairs)


def test_corrections(tmp_path: Path) -> None:
    row = {"_id": "1", "task": "gec", "src": "Fix: He go.", "tgt": "He goes.", "refs": ["He goes.", "He went."]}
    (found,) = read(tmp_path, [row])
    assert found == Example("Fix: He go.\n", "He goes.", None, "Fix: He go.", ("He goes.", "He went."), "gec")
    (found,) = read(tmp_path, [row], template="Q: {prompt} A: ")
    assert found.prompt == "Q: Fix: He go. A: "


def test_plain_rows_and_named_columns(tmp_path: Path) -> None:
    (found,) = read(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert (found.prompt, found.chosen, found.references) == ("a\n", "b", ())
    (tmp_path / "same.jsonl").write_text(json.dumps({"q": "z", "a": "y"}) + "\n")
    columns = {"prompt": "q", "completion": "a"}
    (found,) = read(tmp_path, [{"q": "a", "a": "b"}], columns=columns, validation=[str(tmp_path / "same.jsonl")])
    assert (found.prompt, found.chosen) == ("a\n", "b")
    # The better answer of a pair is an answer.
    (found,) = read(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert (found.chosen, found.rejected) == ("b", None)
    (found,) = read(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], pairs=True)
    assert (found.chosen, found.rejected) == ("b", "c")


def test_every_turn_of_a_chat_is_an_example(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    first, second = read(tmp_path, [{"messages": messages}], chat=True)
    assert (first.prompt, first.chosen) == ("<user>a</><assistant>", "b</>")
    assert (second.prompt, second.chosen) == ("<user>a</><assistant>b</><user>c</><assistant>", "d</>")


def test_a_ranking_of_sharegpt(tmp_path: Path, shared: Path) -> None:
    lines = (shared / "data" / "pref_chat_dpo_en_demo.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = read(tmp_path, rows, pairs=True, chat=True)
    assert len(found) == len(rows) == 233
    assert found[0].prompt == f"<user>{rows[0]['conversations'][0]['value']}</><assistant>"
    assert found[0].chosen == rows[0]["chosen"]["value"] + "</>"
    assert found[0].rejected == rows[0]["rejected"]["value"] + "</>"


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"src": f"{number % 50}", "tgt": f"{number}"} for number in range(200)]  # every prompt four times
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(
        parse(AlignDataRecipe, {"train": [str(file)], "held_out": 0.3}), tiny_tokenizer(), pairs=False
    )
    train, held_out = ({example.prompt for example in side} for side in (found.train, found.validation))
    assert not train & held_out
    assert len(train) + len(held_out) == 50
    both = parse(AlignDataRecipe, {"train": [str(file)], "validation": [str(file)]})
    with pytest.raises(DataError, match=r"none of .* is left for training"):
        read_examples(both, tiny_tokenizer(), pairs=False)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": "a"}, {}, "match no known format"),
        ({"prompt": "a", "completon": "b"}, {}, "Did you mean 'completon'"),
        ({"prompt": "a", "chosen": "b"}, {"pairs": True}, 'no "rejected"'),
        ({"prompt": "a", "completion": 3}, {}, "the answer is a int"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, {"pairs": True}, "rejected is a int"),
        ({"prompt": 3, "completion": "b"}, {}, "the prompt is a int"),
        ({"instruction": "a", "input": 3, "output": "b"}, {}, "the context is a int"),
        ({"prompt": "a", "completion": "b", "label": False}, {}, "(as of KTO) are not supported"),
        ({"prompt": "a", "completion": "b", "label": 1}, {}, "line 1: answers with a `label` of 1 or 0 (as of KTO)"),
        ({"prompt": "a", "completion": "b", "label": "0"}, {}, "or make pairs"),
        ({"prompt": "a", "completion": "b", "kto_tag": False}, {}, "a `kto_tag` of true or false"),
        ({"prompt": "a", "completion": ["b"]}, {"chat": True}, "a str instead of a message with role and content"),
        ({"messages": "hello"}, {"chat": True}, "a str instead of messages"),
        ({"messages": [{"role": "user", "content": 3}]}, {"chat": True}, "whose content is a int"),
        ({"chosen": 3, "rejected": "a"}, {"pairs": True}, "chosen is a int"),
        ({"messages": [{"who": "a"}]}, {"chat": True}, "without role and content"),
        ({"conversations": {"a": 1}}, {"chat": True}, "without role and content"),
        ({"src": "a"}, {}, 'no "tgt"'),
    ],
)
def test_rows_that_are_not_what_they_should_be(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row], **options)
    assert said in str(caught.value)
    assert "rows.jsonl" in str(caught.value)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(RequestError, match="no chat template"):
        read(tmp_path, [row])
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path, [row], chat_template="nowhere.jinja")
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(RequestError, match="cannot render"):
        read(tmp_path, [row], chat_template=str(tmp_path / "bad.jinja"))


def test_answers_follow_the_tokens_of_their_prompt() -> None:
    tokenizer = tiny_tokenizer()
    (row,), dropped = tokenised([Example("the su", "m of", "seven", "the su")], tokenizer, 64)
    assert list(row.prompt) == tokenizer("the su")["input_ids"]
    assert tokenizer.decode(row.prompt + row.chosen) == "the sum of<end>"  # no token over the boundary
    assert row.chosen[-1] == row.rejected[-1] == tokenizer.eos_token_id
    assert row.tokens == 2 * len(row.prompt) + len(row.chosen) + len(row.rejected)
    assert dropped.to_json() == {"equal": 0, "too_long": 0, "empty": 0}


def test_what_cannot_be_learned_from_is_left_out() -> None:
    examples = [
        Example("a", "b", "c", "a"),
        Example("a", "b", "b", "a"),
        Example("a", "b " * 40, "c", "a"),
        Example("a", "c", "b " * 40, "a"),
        Example("a", " ", "c", "a"),
        Example("", "b", "c", ""),
        Example("", "", None, "", left_out="no_answer"),
    ]
    rows, dropped = tokenised(examples, tiny_tokenizer(), 16)
    assert len(rows) == 1
    assert dropped.to_json() == {"equal": 1, "too_long": 2, "empty": 2, "no_answer": 1}
    assert fingerprint(rows) != fingerprint([*rows, *rows])


# -- public schemas --------------------------------------------------------------------------------------------------


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any, **further: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **further}


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
ASKED = "<user>q</><assistant>"
# A row; whether it is a pair; the prompt, the answer and the worse answer.
SCHEMAS: dict[str, tuple[dict[str, Any], bool, str, str, str | None]] = {
    "ultrafeedback": (
        {"prompt": "q", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
        True,
        ASKED,
        "a</>",
        "b</>",
    ),
    "ultrafeedback for sft": ({"prompt": "q", "chosen": [user("q"), bot("a")]}, False, ASKED, "a</>", None),
    "system in the answers": (
        {
            "prompt": "q",
            "chosen": [{"role": "system", "content": "s"}, user("q"), bot("a")],
            "rejected": [{"role": "system", "content": "s"}, user("q"), bot("b")],
        },
        True,
        "<system>s</>" + ASKED,
        "a</>",
        "b</>",
    ),
    "implicit prompt": (
        {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
        True,
        ASKED,
        "a</>",
        "b</>",
    ),
    "implicit prompt, text": (
        {"chosen": "\n\nHuman: q\n\nAssistant: I do.", "rejected": "\n\nHuman: q\n\nAssistant: I do not."},
        True,
        "\n\nHuman: q\n\nAssistant:",
        " I do.",
        " I do not.",
    ),
    "implicit prompt, words": (
        {"chosen": "The sky is blue", "rejected": "The sky is black"},
        True,
        "The sky is",
        " blue",
        " black",
    ),
    "a message as the answer": (
        {"messages": [user("q")], "chosen": bot("a"), "rejected": bot("b")},
        True,
        ASKED,
        "a</>",
        "b</>",
    ),
    "messages in a string": ({"messages": json.dumps([user("q"), bot("a")])}, False, ASKED, "a</>", None),
    "content as parts": (
        {"messages": [user([{"type": "text", "text": "q"}]), bot([{"type": "text", "text": "a"}, "!"])]},
        False,
        ASKED,
        "a!</>",
        None,
    ),
    "sharegpt with a system column": (
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        False,
        "<system>s</>" + ASKED,
        "a</>",
        None,
    ),
    "nemotron": (
        {"input": [user("q")], "output": "a", "system_prompt": "s"},
        False,
        "<system>s</>" + ASKED,
        "a</>",
        None,
    ),
    "nemotron, text": ({"input": "q", "output": "a"}, False, "q\n", "a", None),
    "alpaca": ({"instruction": "q", "input": "c", "output": "a"}, False, "q\nc\n", "a", None),
    "alpaca without input": ({"instruction": "q", "input": "", "output": "a"}, False, "q\n", "a", None),
    "dolly": ({"instruction": "q", "context": "c", "response": "a", "category": ""}, False, "q\nc\n", "a", None),
    "gsm8k": ({"question": "q", "answer": "a"}, False, "q\n", "a", None),
    "orca pairs": ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, True, "s\n\nq\n", "a", "b"),
    "input pairs": ({"system": "s", "input": "q", "chosen": "a", "rejected": "b"}, True, "s\n\nq\n", "a", "b"),
    "mbpp": ({"text": "q", "code": "a"}, False, "q\n", "a", None),
    "prompt and response": ({"prompt": "q", "response": "a"}, False, "q\n", "a", None),
    "json as the answer": ({"prompt": "q", "completion": '[{"role": "x"}]'}, False, "q\n", '[{"role": "x"}]', None),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_common_schemas(tmp_path: Path, name: str) -> None:
    row, pairs, prompt, chosen, rejected = SCHEMAS[name]
    found = read_all(tmp_path, [row], pairs=pairs, chat=True)
    (one,) = found.train
    assert (one.prompt, one.chosen, one.rejected, one.left_out) == (prompt, chosen, rejected, None)
    assert found.ignored == {}


def test_a_chat_whose_prompt_is_repeated_in_a_column(tmp_path: Path) -> None:
    """As in HuggingFaceH4/ultrachat_200k."""
    row = {"prompt": "q", "prompt_id": "1", "messages": [user("q"), bot("a"), user("r"), bot("b")]}
    found = read_all(tmp_path, [row], chat=True)
    assert [(one.prompt, one.chosen) for one in found.train] == [
        (ASKED, "a</>"),
        ("<user>q</><assistant>a</><user>r</><assistant>", "b</>"),
    ]
    assert found.ignored == {'column "prompt"': 1, 'column "prompt_id"': 1}


def test_the_real_schemas_on_disk(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHAT)
    for name in ("nemotron_relabelled", "chat_dolly_sample", "chat_alpaca_en_demo", "math_gsm8k", "code_mbpp"):
        data = {"train": [str(shared / "data" / f"{name}.jsonl")], "chat_template": str(tmp_path / "chat.jinja")}
        found = read_examples(parse(AlignDataRecipe, data), tiny_tokenizer(), pairs=False)
        assert all(one.chosen for one in found.train if one.left_out is None)
        assert sum(one.left_out is None for one in found.train) > 50
        assert all(what.startswith("column ") for what in found.ignored)


def test_trees_are_read_along_their_best_replies(tmp_path: Path) -> None:
    def message(name: str, parent: str | None, role: str, rank: int | None = None) -> dict[str, Any]:
        return {"message_id": name, "parent_id": parent, "text": name, "role": role, "rank": rank, "lang": "en"}

    rows = [
        message("q", None, "prompter"),
        message("worse", "q", "assistant", 1),
        message("a", "q", "assistant", 0),
        message("alone", None, "prompter"),
        message("orphan", "nowhere", "assistant"),
    ]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_all(tmp_path, [{"prompt": "x", "completion": "y"}], chat=True, validation=[str(tmp_path / "o.jsonl")])
    first, *others = found.validation
    assert (first.prompt, first.chosen) == (ASKED, "a</>")
    assert [other.left_out for other in others] == ["no_answer", "empty"]
    assert found.ignored == {"replies that are not the best-ranked": 1}


# -- what is left out, and what is not used --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "pairs", "reason"),
    [
        ({}, False, "empty"),
        ({"prompt": None, "completion": "a"}, False, "empty"),
        ({"prompt": "q", "completion": None}, False, "empty"),
        ({"prompt": "q", "completion": float("nan")}, False, "empty"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, True, "empty"),
        ({"messages": []}, False, "empty"),
        ({"messages": None}, False, "empty"),
        ({"messages": [user("q")]}, False, "no_answer"),
        ({"messages": [bot("a")]}, False, "no_prompt"),
        ({"messages": [user("q"), bot("")]}, False, "empty"),
        ({"messages": [user("q"), bot(None, tool_calls=[CALL])]}, False, "empty"),
        ({"messages": [user("q"), bot("a", weight=0)]}, False, "weight_0"),
        ({"messages": [user("q"), {"role": "chatgpt", "content": "a"}]}, False, "unknown_role"),
        ({"messages": [user("q"), {"role": None, "content": "a"}]}, False, "unknown_role"),
        ({"messages": [user([{"type": "image_url", "image_url": "x"}]), bot("a")]}, False, "not_text"),
        ({"prompt": [user("q")], "chosen": [user("q")], "rejected": [bot("b")]}, True, "no_answer"),
        ({"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("a")]}, True, "equal"),
        ({"chosen": "yes", "rejected": "no"}, True, "no_prompt"),
        ({"chosen": [user("q"), bot("a")], "rejected": [user("r"), bot("b")]}, True, "no_prompt"),
        (
            {"messages": [user("o")], "chosen": [user("q"), bot("a")], "rejected": [user("r"), bot("b")]},
            True,
            "prompts_differ",
        ),
    ],
)
def test_rows_of_which_nothing_can_be_learned(tmp_path: Path, row: dict[str, Any], pairs: bool, reason: str) -> None:
    good = {**row, "prompt": "x", "completion": "y", "chosen": "y", "rejected": "z"}
    if "messages" in row:
        good = {"messages": [user("x"), bot("y")], **({"chosen": bot("y"), "rejected": bot("z")} if pairs else {})}
    elif "chosen" in row and "prompt" not in row:
        good = {"chosen": "x y", "rejected": "x z"}
    first, second = read(tmp_path, [good, row], pairs=pairs, chat=True)
    assert (first.left_out, second.left_out) == (None, reason)
    assert (second.chosen, second.rejected) == ("", None)
    rows, dropped = tokenised([first, second], tiny_tokenizer(), 64)
    assert len(rows) == 1
    assert dropped.to_json()[reason] == 1


def test_what_is_not_used_is_named_with_its_count(tmp_path: Path) -> None:
    plain = {"prompt": "q", "completion": "a", "note": "n", "empty": None, "tools": [{"name": "f"}]}
    assert read_all(tmp_path, [plain, plain]).ignored == {
        'column "note"': 2,
        'column "tools" (plain prompts do not support it)': 2,
    }
    chat = [
        user("q"),
        bot("", tool_calls=[CALL]),
        {"role": "tool", "content": "1", "name": "f"},
        bot("a"),
        user("thanks"),
    ]
    row = {"messages": chat, "tools": [{"name": "f"}], "system": "s", "score": 1.0}
    found = read_all(tmp_path, [row], chat=True)
    assert found.ignored == {
        'column "score"': 1,
        "turns after the last answer": 1,
        '"name" of messages (the chat template does not use it)': 1,
        '"tool_calls" of messages (the chat template does not use it)': 1,
        'column "tools" (the chat template does not use it)': 1,
    }
    assert [one.left_out for one in found.train] == ["empty", None]
    assert found.train[1].prompt.startswith("<system>s</><user>q</>")
    own = [{"role": "system", "content": "o"}, user("q"), bot("a", weight=0.5, reasoning_content="r")]
    strange = {"messages": [*own, {"role": "critic", "content": "c"}, bot("half \ud800")], "system": "s"}
    found = read_all(tmp_path, [strange], chat=True)
    assert found.ignored == {
        'loss on turns of the unknown role "critic"': 1,
        "system prompts (the chats already have one)": 1,
        "weights of turns other than 0 and 1": 1,
        '"reasoning_content" of messages (the chat template does not use it)': 1,
        'texts with half a surrogate pair, read as "?"': 1,
    }
    assert found.train[1].chosen == "half ?</>"


SHOWS_ALL = (
    "{% if tools %}<tools>{{ tools | tojson }}</>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.arguments.x }}</call>{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_tools_calls_and_reasoning_are_rendered_where_the_template_shows_them(tmp_path: Path) -> None:
    (tmp_path / "all.jinja").write_text(SHOWS_ALL)
    chat = [user("q"), bot(None, tool_calls=[CALL]), {"role": "tool", "content": "1"}, bot("a", reasoning_content="r")]
    row = {"messages": chat, "tools": json.dumps([{"name": "f"}])}
    found = read_all(tmp_path, [row], chat_template=str(tmp_path / "all.jinja"))
    assert found.ignored == {}
    first, second = found.train
    tools = '<tools>[{"name": "f"}]</>'
    assert (first.prompt, first.chosen) == (tools + ASKED, "<call>1</call></>")
    assert (second.prompt, second.chosen) == (
        f"{tools}{ASKED}<call>1</call></><tool>1</><assistant>",
        "<think>r</think>a</>",
    )


# -- answers of several turns ----------------------------------------------------------------------------------------


def test_every_answer_of_a_preference_is_learned_and_nothing_between(tmp_path: Path) -> None:
    row = {
        "prompt": [user("the")],
        "chosen": [bot("sum"), user("of"), bot("three")],
        "rejected": [bot("four"), user("and"), bot("seven", weight=0)],
    }
    (one,) = read(tmp_path, [row], pairs=True, chat=True)
    assert one.chosen == "sum</><user>of</><assistant>three</>"
    assert [learned for _, learned in one.chosen_turns] == [True, False, True]
    assert [learned for _, learned in one.rejected_turns] == [True, False, False]
    tokenizer = tiny_tokenizer()
    (found,), _ = tokenised([one], tokenizer, 64)
    assert tokenizer.decode(found.chosen) == one.chosen + "<end>"

    def learned(ids: tuple[int, ...], loss: tuple[bool, ...]) -> str:
        assert len(ids) == len(loss)
        return str(tokenizer.decode([token for token, kept in zip(ids, loss, strict=True) if kept]))

    assert learned(found.chosen, found.chosen_loss) == "sum</>three</><end>"
    assert learned(found.rejected, found.rejected_loss) == "four</>"
    plain, _ = tokenised([replace(one, chosen_turns=(), rejected_turns=())], tokenizer, 64)
    assert fingerprint([found]) != fingerprint(plain)


def test_differences_in_an_earlier_turn_are_differences(tmp_path: Path) -> None:
    row = {
        "messages": [user("q")],
        "chosen": [user("q"), bot("a"), user("more"), bot("c")],
        "rejected": [user("q"), bot("b"), user("more"), bot("c")],
    }
    (one,) = read(tmp_path, [row], pairs=True, chat=True)
    assert one.prompt == ASKED
    rows, dropped = tokenised([one], tiny_tokenizer(), 64)
    assert dropped.to_json() == {"equal": 0, "too_long": 0, "empty": 0}
    batches = {method: dataset(rows, method) for method in ("sft", "dpo", "cpo")}
    row, start = rows[0], len(rows[0].prompt)
    labels = [token if kept else -100 for token, kept in zip(row.chosen, row.chosen_loss, strict=True)]
    assert batches["sft"][0]["labels"][start:] == batches["cpo"][0]["chosen_labels"][start:] == labels
    arguments = SimpleNamespace(max_length=64, truncation_mode="keep_start", pad_to_multiple_of=None)
    collate = collator(rows, "dpo", SimpleNamespace(pad_token_id=0), arguments)
    mask = collate([batches["dpo"][0]])["completion_mask"]
    assert mask[0].tolist()[: start + len(labels)] == [0] * start + [int(label != -100) for label in labels]
    assert mask.sum() == sum(row.chosen_loss) + sum(row.rejected_loss)
    assert collator([replace(row, chosen_loss=(), rejected_loss=())], "dpo", None, arguments) is None
