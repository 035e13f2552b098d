"""A conversation: what is sent, what is kept, and what is left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from helpers import chat_model, dense_llama, random_moe, save

import smolmoe
from smolmoe.errors import OutputError, RequestError
from smolmoe.inference.chat import Chat
from smolmoe.inference.generate import generate
from smolmoe.inference.kept_cache import KeptCache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(random_moe("mixtral", max_position_embeddings=512), tmp_path_factory.mktemp("moe"))


def started(folder: Path, **options: Any) -> Chat:
    return smolmoe.chat(folder, **{"temperature": 0, "max_new_tokens": 12, **options})


def rendered(*messages: str) -> str:
    roles = ("user", "assistant")
    turns = "".join(f"[{roles[at % 2]}]{text}<end>" for at, text in enumerate(messages))
    return turns + "[assistant]"


def test_the_history_is_in_each_prompt(folder: Path) -> None:
    chat = started(folder)
    first = chat.say("The sum")
    second = chat.say("and four")
    raw: dict[str, Any] = {"chat": False, "temperature": 0, "max_new_tokens": 12}
    assert first.texts == generate(folder, rendered("The sum"), **raw).texts
    assert second.texts == generate(folder, rendered("The sum", first.texts[0], "and four"), **raw).texts
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.last == second
    assert (second.format, second.prompt) == ("chat", "and four")


def test_only_what_is_new_is_read_again(folder: Path) -> None:
    chat = started(folder)
    read: list[int] = []
    chat._writer.network.register_forward_pre_hook(
        lambda module, args, options: read.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    before = chat.say("The sum of three and four is seven")
    first = len(read)
    answer = chat.say("and four")
    assert read[first] <= answer.prompt_tokens - before.prompt_tokens
    other = started(folder)
    other.messages = chat.messages[:2]
    assert other.say("and four").texts == answer.texts


@pytest.mark.parametrize("kind", ["mistral", "granitemoehybrid"])
def test_caches_that_cannot_be_shortened_are_not_kept(kind: str, tmp_path: Path) -> None:
    from helpers import SIZES
    from transformers import MistralConfig, MistralForCausalLM

    if kind == "mistral":
        model: Any = MistralForCausalLM(MistralConfig(**SIZES, intermediate_size=48, sliding_window=8)).eval()
    else:
        model = random_moe(kind)
    folder = chat_model(model, tmp_path)
    chat = started(folder, max_new_tokens=6)
    chat.say("The sum")
    answer = chat.say("and four")
    fresh = started(folder, max_new_tokens=6)
    fresh.messages = chat.messages[:2]
    assert fresh.say("and four").texts == answer.texts
    assert chat._kept.take([1, 2, 3]) is None


def test_a_cache_is_kept_up_to_the_first_difference() -> None:
    class Cache:
        is_croppable, is_sliding = True, (False,)
        cropped = 0

        def get_seq_length(self) -> int:
            return 4

        def crop(self, tokens: int) -> None:
            self.cropped = tokens

    kept, cache = KeptCache(), Cache()
    kept.keep(cache, [1, 2, 3, 4, 5])
    assert kept.take([1, 2, 9, 9]) is cache
    assert cache.cropped == -2
    assert kept.take([1, 2, 9, 9]) is None
    kept.keep(cache, [1, 2, 3, 4, 5])
    assert kept.take([1, 2, 3, 4]) is cache  # the last token of the prompt is read again
    assert cache.cropped == -1


def test_a_full_context_leaves_out_the_oldest_turns_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = chat_model(random_moe("mixtral"), tmp_path)  # 128 positions
    chat = started(folder)
    with caplog.at_level(logging.WARNING, logger="smolmoe"):
        for _ in range(6):
            found = chat.say("The sum")
            assert found.prompt_tokens + 12 <= 128
    assert len(chat.messages) == 12
    assert 0 < chat.left_out < 12
    assert "context of 128 tokens is full: the oldest" in caplog.text
    kept = [message["content"] for message in chat.messages[chat.left_out : -1]]
    raw = generate(folder, rendered(*kept), chat=False, temperature=0, max_new_tokens=12)
    assert raw.texts == found.texts
    with pytest.raises(RequestError, match="context"):
        chat.say("The sum of three and four. " * 40)
    assert len(chat.messages) == 12


def test_turns_are_taken_back_and_repeated(folder: Path) -> None:
    chat = started(folder, temperature=2.0, seed=5)
    with pytest.raises(RequestError, match="no message"):
        chat.undo()
    first = chat.say("The sum").texts[0]
    second = chat.say("and four").texts[0]
    again = chat.retry().texts[0]
    assert again != second
    assert [message["content"] for message in chat.messages] == ["The sum", first, "and four", again]
    assert chat.undo() == "and four"
    assert len(chat.messages) == 2
    chat.reset()
    assert chat.messages == []
    repeated = started(folder, temperature=2.0, seed=5)
    assert repeated.say("The sum").texts == (first,)


def test_a_message_that_fails_changes_nothing(folder: Path) -> None:
    chat = started(folder)
    chat.say("The sum")
    before = list(chat.messages)

    def broken(piece: str) -> None:
        raise RuntimeError("full")

    for call in (lambda: chat.say("and", broken), lambda: chat.retry(broken)):
        with pytest.raises(RuntimeError, match="full"):
            call()
        assert chat.messages == before
    with pytest.raises(RequestError, match="empty"):
        chat.say(" ")
    fresh = started(folder)
    fresh.messages = before
    assert chat.say("and").texts == fresh.say("and").texts  # the cache of the failed answer is not used


def test_a_system_message_and_a_saved_conversation(folder: Path, tmp_path: Path) -> None:
    chat = started(folder, system="def")
    found = chat.say("The sum")
    raw = generate(folder, "[system]def<end>" + rendered("The sum"), chat=False, temperature=0, max_new_tokens=12)
    assert found.texts == raw.texts
    chat.system = None
    assert chat.say("The sum").texts != found.texts
    chat.system = "def"
    path = chat.save(tmp_path / "chat.jsonl")
    row = json.loads(path.read_text())
    assert row["messages"][0] == {"role": "system", "content": "def"}
    assert row["messages"][1:] == chat.messages
    with pytest.raises(OutputError, match="exists"):
        chat.save(path)


def test_an_answer_is_iterated_over_and_interrupted(folder: Path) -> None:
    chat = started(folder)
    pieces = list(chat.stream("The sum"))
    assert chat.last is not None
    assert "".join(pieces) == chat.last.texts[0]
    endless = started(folder, max_new_tokens=400)
    for _ in endless.stream("The sum"):
        break
    assert endless.last is not None
    assert endless.last.ends == ("interrupted",)
    assert endless.last.new_tokens[0] < 400
    assert endless.messages[-1]["content"] == endless.last.texts[0]
    assert endless.say("and").ends != ("interrupted",)


def test_models_without_turns_are_refused(folder: Path, tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path / "base")
    with pytest.raises(RequestError, match="no chat template") as caught:
        smolmoe.chat(base)
    assert "generate" in str(caught.value.fix)
    with pytest.raises(RequestError, match="a chat has several"):
        smolmoe.chat(folder, experts="auto")
    some = started(folder, experts=[1])
    assert some.say("The sum").experts is not None


@pytest.mark.slow
def test_a_real_model_remembers(smollm2: Path) -> None:
    chat = started(smollm2, max_new_tokens=40)
    assert "Paris" in chat.say("What is the capital of France?").texts[0]
    assert "Rome" in chat.say("And of Italy?").texts[0]
