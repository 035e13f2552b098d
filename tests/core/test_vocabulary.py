"""A tokenizer with tokens that its model lacks: the token and its row are named, by every command, before any work."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import VOCABULARY, dense_llama, random_moe, save, tiny_tokenizer

from smolmoe.core.vocabulary import UnknownTokenError, spare_tokens, within_vocabulary
from smolmoe.data.prompts import CorrectionRow
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.errors import DataError
from smolmoe.evaluation.compare.run import compare
from smolmoe.evaluation.correction import score_checkpoint
from smolmoe.inference.expert_choice import route_prompt
from smolmoe.inference.generate import generate, generate_all
from smolmoe.moe.loading import find_tokenizer, load_tokenizer
from smolmoe.probing.measure import probe
from smolmoe.recipe.probe import ProbeOptions
from smolmoe.selection.scores import token_ids
from smolmoe.surgery.inspection import inspect
from smolmoe.verification.doctor import doctor
from smolmoe.verification.verify import verify

NAMED = r"token '<FIM>' has id 300, the model's vocabulary ends at 299"


def extended(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<FIM>", "<EOT>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"expert_names": ["a", "a", "b", "b"]}
    return extended(save(random_moe("mixtral", **names), tmp_path_factory.mktemp("spare") / "moe"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extended(save(dense_llama(), tmp_path_factory.mktemp("spare") / "dense"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spare") / "text.jsonl"
    rows = [{"text": f"The sum of {n} and four." + " <FIM> end" * (n == 7), "domain": "ab"[n % 2]} for n in range(20)]
    rows.insert(0, {"text": " ", "domain": "a"})  # left out, and counted among the lines
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ASKED: dict[str, Callable[[Path, Path, Path], Any]] = {
    "prompt 1": lambda moe, dense, text: generate(moe, "a <FIM> b", max_new_tokens=2),
    "prompt 2": lambda moe, dense, text: generate_all(moe, ["a", "b<FIM>"], max_new_tokens=2),
    "line 9": lambda moe, dense, text: verify(dense, moe, text=text, sequences=20, length=64),
    " line 9": lambda moe, dense, text: doctor(moe, data=text, sequences=20, length=64),
    "  line 9": lambda moe, dense, text: probe(moe, text, options=ProbeOptions(length=64)),
    "   line 9": lambda moe, dense, text: compare({"dense": dense, "moe": moe}, text),
    "prompt 1 ": lambda moe, dense, text: route_prompt(moe, "a <FIM> b"),
    "line 3": lambda moe, dense, text: score_checkpoint(
        moe, [CorrectionRow("a <FIM>", "a", ("b",), "line 3")], max_new_tokens=2
    ),
}


@pytest.mark.parametrize("place", ASKED)
def test_commands_name_the_token_and_its_place(place: str, moe: Path, dense: Path, text: Path) -> None:
    with pytest.raises(DataError, match=f"{place.strip()}: {NAMED}"):
        ASKED[place](moe, dense, text)


def test_other_text_is_read(moe: Path) -> None:
    assert generate(moe, "The sum", max_new_tokens=2, temperature=0).new_tokens == (2,)


def test_inspect_and_the_plan_say_so(dense: Path) -> None:
    from tests.surgery.test_request import plan

    assert "'<FIM>', '<EOT>'" in inspect(str(dense)).warnings[0]
    assert "more tokens than the model's vocabulary of 300" in plan(source=dense).warnings[0]


def test_files_say_which_tokens_are_spare(tmp_path: Path) -> None:
    assert spare_tokens(extended(tmp_path), VOCABULARY) == ["<FIM>", "<EOT>"]
    assert spare_tokens(tmp_path, VOCABULARY - 1)[1:] == ["<FIM>", "<EOT>"]
    assert spare_tokens(tmp_path, VOCABULARY + 2) == []
    assert spare_tokens(tmp_path / "nothing", 1) == []


def test_every_way_of_making_ids_is_checked_and_the_tokenizer_stays_what_it_is(moe: Path, tmp_path: Path) -> None:
    tokenizer, alone = load_tokenizer(moe), find_tokenizer(str(moe))
    assert tokenizer_hash(tokenizer) == tokenizer_hash(alone)
    for call in (tokenizer, tokenizer.encode, lambda text: token_ids(tokenizer, ["a", text])):
        with pytest.raises(UnknownTokenError, match=NAMED):
            call("some <FIM> text")
    with pytest.raises(UnknownTokenError) as caught:
        tokenizer(["a", "x" * 99 + "<FIM>"], return_tensors="pt", padding=True)
    assert (caught.value.index, str(caught.value.value)[-6:]) == (1, "x<FIM>")
    assert alone("<FIM>").input_ids == [300]  # for another model than the folder's
    tokenizer.save_pretrained(tmp_path)
    assert type(load_tokenizer(tmp_path)) is type(alone)
    assert within_vocabulary(alone, 302) is alone
    assert alone.encode("<FIM>") == [300]


def test_the_end_of_text_may_be_one_that_the_model_lacks(tmp_path: Path) -> None:
    folder = extended(save(random_moe("mixtral"), tmp_path / "moe"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<EOT>"}))
    answers = generate_all(folder, ["The sum of", "The"], max_new_tokens=2, temperature=0)  # filled up with another
    assert [answer.new_tokens for answer in answers] == [(2,), (2,)]
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "a b", "domain": "a"}\n{"text": "c d", "domain": "b"}\n')
    with pytest.raises(DataError, match="end-of-text token '<EOT>' has id 301, the model's vocabulary ends at 299"):
        probe(folder, data, options=ProbeOptions(length=64))


def test_selection_names_the_row(moe: Path, text: Path, tmp_path: Path) -> None:
    from smolmoe.recipe import SelectRecipe, parse
    from smolmoe.selection.run import run_select

    recipe = {"sources": [{"path": str(text)}], "score": "perplexity", "model": str(moe), "min_characters": 5}
    with pytest.raises(DataError, match=f"row 9: {NAMED}"):
        run_select(parse(SelectRecipe, recipe | {"budget": 4}), tmp_path / "chosen")


def test_other_processes_get_the_tokenizer_and_its_error(dense: Path) -> None:
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(dense)))
    with pytest.raises(UnknownTokenError, match=NAMED) as found:
        tokenizer(["the sum", "a <FIM>"])
    again = pickle.loads(pickle.dumps(found.value))
    assert (str(again), again.index) == (str(found.value), 1)


@pytest.mark.parametrize("content", ["[1]", "{", '{"model": [1]}', '{"added_tokens": 5}'])
def test_files_that_no_tokenizer_can_be_read_from_have_no_spare_tokens(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert spare_tokens(tmp_path, 10) == []
