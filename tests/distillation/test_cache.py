"""Writing a teacher's cache: what it reads, going on after a kill, several processes, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import dense_gpt2, dense_llama, random_moe, save, tiny_tokenizer
from tests.processes import Child, killed_in, run_ranks
from tests.training.runs import dense_folder, recipe, write_text

from smolmoe.data.targets import open_cache
from smolmoe.data.tokens import encode_documents
from smolmoe.distillation.run import cache_teacher, forecast_cache
from smolmoe.distillation.teacher import Teacher, batches, windows_of
from smolmoe.errors import DataError, OutputError, RequestError, SourceError

WORKER = """
import json, sys
from smolmoe.distillation.run import cache_teacher
from smolmoe.training.distributed import rank
values = json.loads(sys.argv[1])
result = cache_teacher(**values)
print(json.dumps({"rank": rank(), "reused": result.reused, "tokens": result.tokens}))
"""


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small cache in several shards."""
    return {
        "teacher": str(dense_folder(tmp_path / "teacher")),
        "data": str(write_text(tmp_path / "text.jsonl", documents=30)),
        "out": str(tmp_path / "cache"),
        "top_k": 5,
        "device": "cpu",
        "shard_tokens": 300,
        "batch_tokens": 512,
    }


def contents(folder: Path | str) -> dict[str, bytes]:
    """The bytes of all shards' files."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(Path(folder).glob("shard-*/*"))}


# -- what the teacher reads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [2, 3, 7, 8])
def test_windows_want_every_answer_once_with_half_a_window_before_it(longest: int) -> None:
    for tokens in range(1, 40):
        windows = list(windows_of(4, tokens, longest))
        assert [row for w in windows for row in range(w.keep, w.stop)] == list(range(tokens))
        assert all(w.document == 4 and w.stop - w.start <= longest for w in windows)
        assert all(w.keep - w.start >= longest // 2 for w in windows[1:])


def test_batches_hold_no_more_tokens_than_asked() -> None:
    windows = [w for number, tokens in enumerate((5, 90, 33, 1, 12)) for w in windows_of(number, tokens, 16)]
    groups = list(batches(windows, 40))
    assert all(len(group) * max(w.stop - w.start for w in group) <= 40 for group in groups)
    assert sorted(map(str, (w for group in groups for w in group))) == sorted(map(str, windows))


def test_a_document_longer_than_the_positions_is_read_in_windows_that_overlap() -> None:
    model, tokenizer = dense_llama(max_position_embeddings=16), tiny_tokenizer()
    ids = np.array(encode_documents(tokenizer, ["the sum of three and four is seven " * 4])[0])
    assert len(ids) > 40
    teacher = Teacher(model, tokenizer, temperature=1.0, batch_tokens=64)
    rows, said = zip(*teacher.read([ids, ids[:9]]), strict=True)
    found = torch.cat(said)[torch.from_numpy(np.argsort(np.concatenate(rows)))]
    assert len(found) == len(ids) + 9
    text = [tokenizer.eos_token_id, *ids.tolist()]
    with torch.no_grad():
        for row, context in ((0, 0), (15, 0), (16, 8), (23, 8), (24, 16), (39, 24)):
            want = model(torch.tensor([text[context : row + 1]])).logits[0, -1].log_softmax(-1)
            assert torch.allclose(found[row], want, atol=1e-4), row


@pytest.mark.parametrize("kind", ["mixtral", "gpt2"])
def test_any_causal_model_is_a_teacher(asked: dict[str, Any], tmp_path: Path, kind: str) -> None:
    model = dense_gpt2() if kind == "gpt2" else random_moe(kind)
    result = cache_teacher(**asked | {"teacher": str(save(model, tmp_path / kind)), "top_k": 300, "temperature": 2.0})
    assert result.left_over == 0
    cache = open_cache(asked["out"])
    first = json.loads(Path(asked["data"]).read_text().splitlines()[0])["text"]
    ids = encode_documents(tiny_tokenizer(), [first])[0]
    with torch.no_grad():
        want = (model(torch.tensor([[0, *ids]])).logits[0, :-1] / 2).log_softmax(-1)
    rows = cache.read([(0, len(ids))])
    found = torch.zeros(len(ids), 300).scatter(-1, torch.from_numpy(rows.ids).long(), torch.tensor(rows.values).float())
    assert torch.allclose(found, want, atol=1e-2)


def test_what_a_teacher_says_of_padding_beyond_its_tokenizer_is_left_out(asked: dict[str, Any], tmp_path: Path) -> None:
    padded = save(dense_llama(vocab_size=320), tmp_path / "padded")
    result = cache_teacher(**asked | {"teacher": str(padded), "top_k": 300})
    cache = open_cache(result.out)
    assert cache.vocabulary == 300
    rows = cache.read([(0, 20)])
    assert rows.ids.max() == 299
    assert np.allclose(np.exp(rows.values.astype(float)).sum(-1), 1, atol=3e-3)


def test_bytes_a_token_are_those_of_the_files(asked: dict[str, Any]) -> None:
    result = cache_teacher(**asked)
    size = sum(map(len, contents(result.out).values()))
    assert result.bytes == size
    assert result.bytes_per_token == pytest.approx(size / result.tokens, abs=0.01)
    assert result.bytes_per_token >= 5 * (2 + 2) + 2
    assert not (result.out / ".text").exists()


def test_draws_do_not_depend_on_what_is_read_beside_a_document(asked: dict[str, Any], tmp_path: Path) -> None:
    asked = asked | {"top_k": None, "sampled": 50}
    whole = cache_teacher(**asked)
    parts = cache_teacher(**asked | {"out": str(tmp_path / "parts"), "shard_tokens": 10_000, "batch_tokens": 128})
    one, two = (open_cache(result.out).read([(0, 60)]) for result in (whole, parts))
    assert np.array_equal(one.ids[:, : two.ids.shape[1]], two.ids[:, : one.ids.shape[1]])
    assert whole.entropy == pytest.approx(parts.entropy, abs=1e-3)


def test_the_text_of_a_recipe_is_what_its_training_trains_on(asked: dict[str, Any], tmp_path: Path) -> None:
    values = recipe(tmp_path, Path(asked["teacher"]))
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(values))
    found = forecast_cache(asked["teacher"], str(tmp_path / "training.yaml"), asked["out"])
    every = forecast_cache(asked["teacher"], asked["data"], asked["out"])
    assert 0 < found.documents < every.documents == 30
    assert not Path(asked["out"]).exists()
    with pytest.raises(RequestError, match="names all its text"):
        forecast_cache(asked["teacher"], [str(tmp_path / "training.yaml"), asked["data"]], asked["out"])


def test_a_text_that_stands_twice_is_read_once(asked: dict[str, Any], tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    shutil.copy(asked["data"], again)
    found = forecast_cache(asked["teacher"], [asked["data"], str(again)], asked["out"])
    assert found.documents == 30


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_ends_with_the_same_files(asked: dict[str, Any], tmp_path: Path) -> None:
    write_text(Path(asked["data"]), documents=150)
    asked |= {"shard_tokens": 100, "batch_tokens": 80}
    whole = cache_teacher(**asked | {"out": str(tmp_path / "whole")})
    out = Path(asked["out"])
    with Child(killed_in("smolmoe.distillation.cache:write_shard", 4) + WORKER, json.dumps(asked)) as process:
        assert process.wait() == -signal.SIGKILL, process.stderr
    assert not (out / "cache.json").exists()
    with pytest.raises(OutputError, match=r"unfinished.*resume=True"):
        cache_teacher(**asked)
    with pytest.raises(DataError, match="is incomplete"):
        open_cache(out)
    (out / ".shard-00077.partial").mkdir(exist_ok=True)  # as a kill between two files leaves it
    resumed = cache_teacher(**asked, resume=True)
    assert 0 < resumed.reused < resumed.shards
    assert contents(out) == contents(whole.out)
    assert not list(out.glob(".*"))
    assert cache_teacher(**asked, resume=True).tokens == whole.tokens  # done is done


def test_one_that_is_resumed_with_another_request_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    cache_teacher(**asked)
    (Path(asked["out"]) / "cache.json").unlink()
    with pytest.raises(OutputError, match=r"the options changed.*size: 5 there, 6 here"):
        cache_teacher(**asked | {"top_k": 6}, resume=True)
    with pytest.raises(OutputError, match=r"temperature: 1\.0 there, 2\.0 here"):
        cache_teacher(**asked | {"temperature": 2.0}, resume=True)
    other = save(dense_llama(seed=1), tmp_path / "other")
    with pytest.raises(OutputError, match="the teacher changed"):
        cache_teacher(**asked | {"teacher": str(other)}, resume=True)
    before = contents(asked["out"])
    write_text(Path(asked["data"]), documents=31)
    with pytest.raises(OutputError, match="the text changed"):
        cache_teacher(**asked, resume=True)
    assert contents(asked["out"]) == before


def test_what_is_there_stays_unless_it_is_to_be_replaced(asked: dict[str, Any]) -> None:
    first = cache_teacher(**asked)
    with pytest.raises(OutputError, match="finished"):
        cache_teacher(**asked)
    assert cache_teacher(**asked | {"top_k": 3}, overwrite=True).bytes < first.bytes
    shutil.rmtree(asked["out"])
    Path(asked["out"]).mkdir()
    (Path(asked["out"]) / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="something other than"):
        cache_teacher(**asked, overwrite=True)
    assert (Path(asked["out"]) / "thesis.txt").exists()


def test_two_processes_write_what_one_writes(asked: dict[str, Any], tmp_path: Path) -> None:
    alone = cache_teacher(**asked | {"out": str(tmp_path / "names all its text")})
    told = [json.loads(printed.splitlines()[-1]) for printed in run_ranks(WORKER, json.dumps(asked))]
    assert [one["tokens"] for one in told] == [alone.tokens] * 2
    assert alone.shards > 2
    assert contents(asked["out"]) == contents(alone.out)


# -- what will not do --------------------------------------------------------------------------------------------------


def test_a_teacher_that_does_not_fit_its_tokenizer_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    small = save(dense_llama(vocab_size=200), tmp_path / "small")
    with pytest.raises(RequestError, match="300 tokens, but the model only 200"):
        cache_teacher(**asked | {"teacher": str(small)})
    bare = save(dense_llama(), tmp_path / "bare", tokenizer=False)
    with pytest.raises(SourceError, match="no tokenizer"):
        cache_teacher(**asked | {"teacher": str(bare)})
    assert not Path(asked["out"]).exists()


def test_a_teacher_whose_logits_are_no_numbers_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    broken = dense_llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(3e38)  # a number, and its logits are none
    with pytest.raises(SourceError, match="NaN or infinite"):
        cache_teacher(**asked | {"teacher": str(save(broken, tmp_path / "broken"))})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 301}, "300 tokens"),
        ({"top_k": 0}, "at least 1"),
        ({"sampled": 4}, "one kind"),
        ({"top_k": None, "sampled": 70_000}, "at most 65,535"),
        ({"temperature": 0.0}, "above 0"),
        ({"batch_tokens": 1}, "two tokens"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(
    asked: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        cache_teacher(**asked | changes)
    assert not Path(asked["out"]).exists()


def test_a_text_that_is_not_there_or_is_empty_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        cache_teacher(**asked | {"data": str(tmp_path / "absent.jsonl")})
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no documents"):
        cache_teacher(**asked | {"data": str(tmp_path / "empty.jsonl")})
    assert not Path(asked["out"]).exists()
