"""Tokenizers are the same by what they make of text, not by their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer

from smolmoe.data.same_tokenizer import tokenizer_difference, tokenizer_hash


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edited(change: Callable[[dict[str, Any]], Any], file: str = "tokenizer.json") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        change(values)
        (folder / file).write_text(json.dumps(values), encoding="utf-8")

    return edit


def merges_as_strings(values: dict[str, Any]) -> None:
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]


def without_defaults(values: dict[str, Any]) -> None:
    for key in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout", "unk_token"):
        values["model"].pop(key, None)


def slow_files(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))


SAME: dict[str, Callable[[Path], Any]] = {
    "merges as strings": edited(merges_as_strings),
    "keys that have a default": edited(without_defaults),
    "empty for none": edited(lambda t: t["model"].update(continuing_subword_prefix="", end_of_word_suffix="")),
    "offsets trimmed": edited(lambda t: t["pre_tokenizer"].update(trim_offsets=not t["pre_tokenizer"]["trim_offsets"])),
    "cut and filled": edited(
        lambda t: t.update(truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0})
    ),
    "filled on the left": edited(lambda t: t.update(padding_side="left"), "tokenizer_config.json"),
    "another class": edited(lambda t: t.update(tokenizer_class="PreTrainedTokenizerFast"), "tokenizer_config.json"),
    "a chat template": edited(lambda t: t.update(chat_template="{{ messages }}"), "tokenizer_config.json"),
    "files of the slow one": slow_files,
    "a sentencepiece model": lambda folder: (folder / "tokenizer.model").write_bytes(b"\x0a\x03abc"),
    "saved again": lambda folder: load(folder).save_pretrained(folder),
}
OTHER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a merge fewer": (edited(lambda t: t["model"]["merges"].pop()), "merges"),
    "merges in another order": (edited(lambda t: t["model"]["merges"].reverse()), "merge 0 is"),
    "another splitting": (edited(lambda t: t["pre_tokenizer"].update(add_prefix_space=True)), "gives ids"),
    "a normaliser": (edited(lambda t: t.update(normalizer={"type": "Lowercase"})), "gives ids"),
    "composed accents": (edited(lambda t: t.update(normalizer={"type": "NFC"})), "gives ids"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_in_other_files(folder: Path, name: str) -> None:
    before = load(folder)
    SAME[name](folder)
    after = load(folder)
    assert tokenizer_difference(before, after) is None
    assert tokenizer_hash(before) == tokenizer_hash(after)


@pytest.mark.parametrize("name", OTHER)
def test_others_are_told_apart_and_how_is_said(folder: Path, name: str) -> None:
    change, says = OTHER[name]
    before = load(folder)
    change(folder)
    after = load(folder)
    assert says in str(tokenizer_difference(before, after))
    assert tokenizer_hash(before) != tokenizer_hash(after)


def test_added_tokens_and_the_end_of_text(folder: Path) -> None:
    before, more, ended = (load(folder) for _ in range(3))
    more.add_tokens(["<|im_start|>"], special_tokens=True)
    said = str(tokenizer_difference(before, more, names=("base", "specialist")))
    assert "nothing / '<|im_start|>'" in said
    assert "base's / specialist's" in said
    ended.eos_token = before.convert_ids_to_tokens(5)
    assert "end-of-text" in str(tokenizer_difference(before, ended))
    assert tokenizer_difference(before, ended, ends=False) is None
    assert tokenizer_hash(before) != tokenizer_hash(ended)
