"""Prompts in the model's template, and turns that end by what the template ends them with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHAT_TEMPLATE, chat_model, chat_tokenizer, dense_llama, random_moe, save, tiny_tokenizer

from smolmoe.errors import RequestError
from smolmoe.inference.chat_format import TurnEnd, turn_end
from smolmoe.inference.generate import generate
from smolmoe.inference.sampling import end_tokens

LINES = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
ONLY_BETWEEN = "{% for m in messages %}{{ m.content }}{% if not loop.last %}<end>{% endif %}{% endfor %}"
# Its parts end by <end>, its answers by <pad>.
PARTS = (
    "{% for m in messages %}{{ m.content }}{% if loop.last and m.role == 'assistant' %}<pad>{% else %}<end>{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, TurnEnd(token=0)),
        (CHAT_TEMPLATE.replace("'<end>'", "' <end>\\n'"), TurnEnd(token=0)),
        (LINES, TurnEnd(text="\nuser:")),
        (ONLY_BETWEEN, TurnEnd(token=0)),
        (PARTS, TurnEnd(token=1)),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", TurnEnd()),
        ("{{ raise_exception('only tools') }}", TurnEnd()),
        (None, TurnEnd()),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(template: Any, end: TurnEnd) -> None:
    assert turn_end(chat_tokenizer(template)) == end


def test_every_kind_of_end_token_counts_if_the_model_has_it() -> None:
    model, tokenizer = dense_llama(), chat_tokenizer()
    model.generation_config.eos_token_id = [7, 5, 7, 10_000]
    assert end_tokens(model, tokenizer) == [7, 5, 1, 0]
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    assert end_tokens(model, tokenizer) == [0]


def test_a_turn_ends_by_the_templates_token(tmp_path: Path) -> None:
    model = dense_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # always writes token 0, <end>
    found = generate(chat_model(model, tmp_path), "The sum", temperature=0, max_new_tokens=9)
    assert (found.format, found.texts, found.new_tokens, found.ends) == ("chat", ("",), (1,), ("end_token",))
    assert set(found.end_tokens) == {"<end>", "<pad>"}


def test_a_turn_without_an_end_token_ends_where_the_next_would_begin(tmp_path: Path) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30}
    base = save(random_moe("mixtral"), tmp_path / "base")
    whole = generate(base, "The sum:", **options).texts[0]
    begins = whole[4:8]
    assert begins == begins.rstrip() != ""
    template = (
        "{% for m in messages %}{% if m.role == 'user' and not loop.first %}{{ BEGINS }}{% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ ':' }}{% endif %}"
    ).replace("BEGINS", json.dumps(begins))
    found = generate(chat_model(random_moe("mixtral"), tmp_path / "chat", template), "The sum", **options)
    assert (found.texts[0], found.ends) == (whole.partition(begins)[0], ("stop_text",))


def test_a_template_decides_the_default_format(tmp_path: Path) -> None:
    folder = chat_model(random_moe("mixtral"), tmp_path / "chat")
    base = save(random_moe("mixtral"), tmp_path / "base")
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6}
    as_chat, raw = generate(folder, "The sum", **options), generate(folder, "The sum", chat=False, **options)
    assert (as_chat.format, raw.format, generate(base, "The sum", **options).format) == ("chat", "raw", "raw")
    written = "[user]The sum<end>[assistant]"
    assert generate(folder, written, chat=False, **options).texts == as_chat.texts != raw.texts
    assert as_chat.prompt_tokens == len(tiny_tokenizer()(written)["input_ids"])
    system = generate(folder, "The sum", system="def", **options)
    assert system.texts == generate(folder, "[system]def<end>" + written, chat=False, **options).texts
    file = tmp_path / "template.jinja"
    file.write_text(CHAT_TEMPLATE)
    assert generate(base, "The sum", template=file, **options).format == "chat"


def test_formats_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    with pytest.raises(RequestError, match="no chat template"):
        generate(base, "The", chat=True)
    with pytest.raises(RequestError, match="no chat template"):
        generate(base, "The", system="You add.")
    with pytest.raises(RequestError, match="for the chat format"):
        generate(base, "The", chat=False, system="You add.")
    with pytest.raises(RequestError, match="cannot be read"):
        generate(base, "The", template=tmp_path / "nowhere.jinja")
    without = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system') }}{% endif %}{% endfor %}"
    )
    silent = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    for template in (without, silent):
        folder = chat_model(dense_llama(), tmp_path / "strict", template)
        with pytest.raises(RequestError, match="takes no system message") as caught:
            generate(folder, "The", system="You add.")
        assert caught.value.field == "system"
    broken = chat_model(dense_llama(), tmp_path / "broken", "{{ messages | nonsense }}")
    with pytest.raises(RequestError, match="chat template cannot write"):
        generate(broken, "The")


@pytest.mark.slow
def test_a_real_model_answers_a_question(smollm2: Path) -> None:
    found = generate(smollm2, "What is the capital of France?", temperature=0, max_new_tokens=30)
    assert (found.format, found.ends) == ("chat", ("end_token",))
    assert "Paris" in found.texts[0]
    raw = generate(smollm2, "What is the capital of France?", chat=False, temperature=0, max_new_tokens=30)
    assert (raw.texts, raw.ends) == (("",), ("end_token",))
