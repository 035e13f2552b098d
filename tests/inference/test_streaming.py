"""What is streamed is what is returned; characters are whole, and stop texts are never seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import chat_model, random_moe, save, tiny_tokenizer

from smolmoe.errors import RequestError
from smolmoe.inference.generate import generate, generate_all
from smolmoe.inference.sampling import answer_text
from smolmoe.inference.streaming import Pieces, iterate, settled, until_stop


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_moe("mixtral", eos_token_id=None), tmp_path_factory.mktemp("moe"))


def streamed(ids: list[int], stops: tuple[str, ...] = ()) -> list[str]:
    """The pieces of a text whose tokens come one by one."""
    found: list[str] = []
    pieces = Pieces(found.append)
    for count in range(1, len(ids) + 1):
        pieces.grow(settled(answer_text(tiny_tokenizer(), [], ids[:count]), stops))
    pieces.end(until_stop(answer_text(tiny_tokenizer(), [], ids), stops))
    return found


def test_a_character_comes_when_all_of_its_bytes_have() -> None:
    text = "a€😀ñ"
    ids = tiny_tokenizer()(text)["input_ids"]
    assert len(ids) == 1 + 3 + 4 + 2
    assert streamed(ids) == ["a", "€", "😀", "ñ"]
    assert streamed(ids[:3]) == ["a", "\ufffd"]  # what never becomes whole is shown at the end


def test_the_beginning_of_a_stop_text_waits() -> None:
    assert settled("one\n", ["\nUser:"]) == "one"
    assert settled("one\nUs", ["\nUser:", "e\nUserX"]) == "on"
    assert settled("one\nUp", ["\nUser:"]) == "one\nUp"
    assert settled("one\nUser: two", ["\nUser:"]) == "one"
    assert until_stop("abcabd", ["abd", "ca"]) == "ab"
    ids = tiny_tokenizer()("see xx see yz")["input_ids"]
    assert "".join(streamed(ids, ("yz",))) == "see xx see "
    assert "".join(streamed(ids, ("yq",))) == "see xx see yz"


def test_a_text_that_changes_its_past_is_streamed_on() -> None:
    found: list[str] = []
    pieces = Pieces(found.append)
    for text in ("do n", "don't", "don't go"):
        pieces.grow(text)
    pieces.end("don't go")
    assert found == ["do n", "'t go"] or "".join(found).endswith("go")


@pytest.mark.parametrize("seed", range(4))
def test_streamed_pieces_make_the_text(moe: Path, seed: int) -> None:
    """Random bytes: most are parts of characters that never become whole."""
    found: list[str] = []
    result = generate(moe, "The sum", seed=seed, temperature=1.5, max_new_tokens=60, on_text=found.append)
    assert found[0] == "The sum"
    assert "".join(found[1:]) == result.texts[0]
    assert len(found) > 3
    assert generate(moe, "The sum", seed=seed, temperature=1.5, max_new_tokens=60).texts == result.texts


def test_an_answer_in_chat_format_is_streamed_alone(tmp_path: Path) -> None:
    found: list[str] = []
    folder = chat_model(random_moe("mixtral"), tmp_path)
    result = generate(folder, "The sum", temperature=0, max_new_tokens=20, on_text=found.append)
    assert "".join(found) == result.texts[0] != ""


def test_each_text_of_a_batch_ends_at_its_own_stop_text(moe: Path) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30}
    prompts = ["The sum", "def"]
    whole = generate_all(moe, prompts, **options)
    stop = whole[0].texts[0][8:11]
    assert stop not in whole[1].texts[0]
    found = generate_all(moe, prompts, stop=stop, **options)
    assert found[0].texts[0] == whole[0].texts[0].partition(stop)[0]
    assert (found[0].ends, found[1].ends) == (("stop_text",), ("length",))
    assert found[0].new_tokens[0] < found[1].new_tokens[0] == 30
    assert found[1].texts == whole[1].texts
    pieces: list[str] = []
    generate(moe, "The sum", stop=[stop, "never"], on_text=pieces.append, **options)
    assert "".join(pieces[1:]) == found[0].texts[0]


def test_several_texts_are_not_streamed(moe: Path) -> None:
    for options in ({"num": 2}, {"prompts": ["a", "b"]}):
        prompts = options.pop("prompts", ["a"])
        with pytest.raises(RequestError, match="single text"):
            generate_all(moe, prompts, on_text=print, **options)


def test_iterating_passes_on_pieces_and_errors_and_interrupts_what_nobody_reads() -> None:
    def run(on_text: Any) -> None:
        on_text("a")
        on_text("b")
        raise ValueError("broken")

    pieces = iterate(run, lambda: None)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    with pytest.raises(ValueError, match="broken"):
        next(pieces)

    stopped: list[bool] = []

    def endless(on_text: Any) -> None:
        while not stopped:
            on_text("a")

    for piece in iterate(endless, lambda: stopped.append(True)):
        assert piece == "a"
        break
    assert stopped
