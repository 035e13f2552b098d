"""A teacher's log-probabilities become the student's only where every token is the same."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from helpers import dense_llama, save, tiny_tokenizer
from teacher_server import answer, serving

from smolmoe.data.corpus import load_corpus
from smolmoe.data.same_tokenizer import tokenizer_difference
from smolmoe.data.targets import TOKENIZER, open_cache
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.loading import load_tokenizer
from smolmoe.recipe.base import parse
from smolmoe.recipe.data import DataRecipe
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.teacher.endpoint import EndpointError
from smolmoe.teacher.job import teach
from smolmoe.teacher.logprobs import Mismatch, StudentTokens
from smolmoe.training.distillation_losses import top_k_divergence

pytest.importorskip("openai")
TEXTS = ["The sum of three and four is seven.", "naïve — 東京 🙂", "def add(a, b):\n    return a + b", "I can see."]


def token_bytes(tokenizer, name):
    """By decoding after a letter, which is not how `StudentTokens` finds them; None where that does not tell."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode([*before, name])
    return None if "�" in decoded else decoded[len(tokenizer.decode(before)) :].encode()


def bytes_of(tokenizer):
    """id -> bytes, as `StudentTokens` has them: what a server with this tokenizer sends."""
    return {name: content for content, name in StudentTokens(tokenizer)._id_of.items() if name is not None}


def said_by(tokenizer, ids, nbytes=True):
    """The API's log-probabilities for these tokens, each before two made-up candidates."""
    contents = bytes_of(tokenizer)
    others = [name for name in contents if name not in tokenizer.all_special_ids]

    def token(name, logprob):
        sent = {"token": contents[name].decode("utf-8", "replace"), "logprob": logprob}
        return sent | {"bytes": list(contents[name]) if nbytes else None}

    entries = []
    for at, name in enumerate(ids):
        candidates = [name, *(other for other in others[at : at + 3] if other != name)][:3]
        logprobs = [math.log(0.5), math.log(0.2), math.log(0.2)]
        top = [token(name, value) for name, value in zip(candidates, logprobs, strict=True)]
        entries.append(top[0] | {"top_logprobs": top})
    return {"content": entries}


def compact(said):
    from smolmoe.teacher.endpoint import _logprobs

    return _logprobs({"logprobs": said})


def tokenizer_of(name, shared):
    from transformers import AutoTokenizer

    return tiny_tokenizer() if name == "tiny" else AutoTokenizer.from_pretrained(shared / "models" / name)


@pytest.mark.parametrize("name", ["tiny", "stories260K", "mix_llama_6m", "seed_qwen2_1m3"])
def test_every_tokens_bytes_are_what_decoding_says(shared, name):
    tokenizer = tokenizer_of(name, shared)
    found = bytes_of(tokenizer)
    assert len(found) >= 0.8 * len(tokenizer)  # SentencePiece's tokens for bytes that are letters, too, are left out
    special = set(tokenizer.all_special_ids)
    compared = 0
    for name_, content in found.items():
        told = token_bytes(tokenizer, name_)
        if told is not None and name_ not in special:
            assert content == told, tokenizer.convert_ids_to_tokens(name_)
            compared += 1
    assert compared > 0.5 * len(found)
    known = [(text, ids) for text, ids in ((t, tokenizer(t, add_special_tokens=False)["input_ids"]) for t in TEXTS)]
    known = [(text, ids) for text, ids in known if found.keys() >= set(ids)]
    assert known
    for text, ids in known:
        assert b"".join(found[name_] for name_ in ids).lstrip(b" ") == text.encode()


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
def test_the_same_tokenizer_fits(shared, name):
    tokenizer = tokenizer_of(name, shared)
    student = StudentTokens(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        targets = student.match(text, compact(said_by(tokenizer, ids)))
        assert targets.ids == ids
        assert [candidates[0] for candidates in targets.candidates] == ids
        assert all(values[0] == pytest.approx(math.log(0.5)) for values in targets.logprobs)
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    ended = compact(said_by(tokenizer, [*ids, tokenizer.eos_token_id]))
    assert student.match(TEXTS[0], ended).ids == ids  # its end-of-text token is no part of the response


@pytest.mark.parametrize("name", ["tiny", "stories260K"])
def test_candidates_without_text_are_left_over(shared, name):
    """llama.cpp's server sends control tokens so, several of them alike; no answer is made of them."""
    tokenizer = tokenizer_of(name, shared)
    student, ids = StudentTokens(tokenizer), tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    said = compact(said_by(tokenizer, ids))
    said = [[*entry[:3], [entry[3][0], ["", None, -2.0], ["", None, -3.0]]] for entry in said]
    targets = student.match(TEXTS[0], said)
    assert targets.candidates == [[name_] for name_ in ids]
    assert targets.logprobs == [[math.log(0.5)]] * len(ids)
    with pytest.raises(Mismatch, match="exactly one"):
        student.match(TEXTS[0], [["", None, -1.0, []], *said])


def test_an_answer_that_goes_on_after_a_space(shared):
    """A tokenizer that puts a space before every text has the first one itself."""
    tokenizer = tokenizer_of("stories260K", shared)
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    targets = StudentTokens(tokenizer).match(f" {TEXTS[0]}", compact(said_by(tokenizer, ids)))
    assert (targets.text, targets.ids) == (TEXTS[0], ids)


def test_fewer_candidates_are_filled_up(tmp_path):
    from smolmoe.teacher.logprobs import Targets
    from smolmoe.teacher.targets import TargetWriter

    tokenizer = tiny_tokenizer()
    writer = TargetWriter(tmp_path, tokenizer, 3, {})
    writer.add(Targets("", [5, 6], [[2, 0], [6, 9, 7]], [[-0.1, -3.0], [-1.0, -2.0, -0.5]]), "stop")
    writer.finish()
    shard = tmp_path / "targets" / "shard-00000"
    ids = np.load(shard / "ids.npy")
    values = np.load(shard / "values.npy")
    assert values[0].tolist() == [np.float16(-0.1), -3.0, -math.inf]
    assert ids[:2].tolist() == [[2, 0, 1], [7, 6, 9]]
    assert all(len(set(row)) == 3 for row in ids.tolist())
    assert np.load(shard / "rest.npy")[0] == np.float16(math.log(1 - math.exp(-0.1) - math.exp(-3.0)))


def test_what_does_not_fit_is_named(shared):
    tiny, stories = tiny_tokenizer(), tokenizer_of("stories260K", shared)
    text = "The sum of three"
    ids = tiny(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(Mismatch, match="exactly one of the student's tokens") as caught:
        StudentTokens(stories).match(text, compact(said_by(tiny, ids)))
    assert " thr" in caught.value.tokens
    letters = [tiny.convert_tokens_to_ids("Ġ" if letter == " " else letter) for letter in text]
    with pytest.raises(Mismatch, match="tokenizes the response differently, first at: 'T', 'Th'"):
        StudentTokens(tiny).match(text, compact(said_by(tiny, letters)))
    with pytest.raises(Mismatch, match="tokenizes the response differently"):
        StudentTokens(tiny).match(text, compact(said_by(tiny, ids[:-1])))
    sure = compact(said_by(tiny, ids))
    sure[0][3][1][2] = -0.1
    with pytest.raises(Mismatch, match=r"add up to 1\.6"):
        StudentTokens(tiny).match(text, sure)
    halves = tiny("東", add_special_tokens=False)["input_ids"]
    assert StudentTokens(tiny).match("東", compact(said_by(tiny, halves))).ids == halves
    with pytest.raises(Mismatch, match="'�'"):  # parts of a letter, told as text alone
        StudentTokens(tiny).match("東", compact(said_by(tiny, halves, nbytes=False)))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return str(save(dense_llama(), tmp_path_factory.mktemp("student")))


def ask(tmp_path, url, prompts, **options):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    values = {"prompts": tmp_path / "p.jsonl", "out": tmp_path / "out", "base_url": url, "model": "m"}
    return teach(parse(TeachRecipe, {**values, "top_logprobs": 3, **options})).to_json()


def test_rows_of_the_students_tokens_become_a_cache_and_others_are_refused_by_name(tmp_path, student):
    tokenizer = tiny_tokenizer()

    def script(prompt, number):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if prompt == "The way":  # spelt letter by letter: the same text in tokens that the student would not take
            ids = [tokenizer.convert_tokens_to_ids("Ġ" if letter == " " else letter) for letter in prompt]
        finish = "length" if prompt == "and so on" else "stop"
        return answer(prompt, logprobs=said_by(tokenizer, ids), finish=finish)

    with serving(script) as server:
        report = ask(tmp_path, server.url, ["The sum", "The way", "as everyone", "and so on"], student=student)
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 3)
    assert (report["student"]["fitting"], report["student"]["refused"]) == (2, 2)
    assert [reason.partition(" (")[0] for reason in report["student"]["reasons"]] == [
        "the student tokenizes the response differently, first at: 'T', 'Th'",
        "the answer was truncated",
    ]
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "logprobs.ndjson").read_text().splitlines()]
    assert rows[0]["ids"] == tokenizer("The sum", add_special_tokens=False)["input_ids"]
    assert "ids" not in rows[1]
    assert "first at" in rows[1]["refused"]
    assert "logprobs" not in (out / "rows.jsonl").read_text()
    _check_cache(
        out, tokenizer, {text: said_by(tokenizer, tokenizer(text)["input_ids"]) for text in ("The sum", "as everyone")}
    )


def _check_cache(out, tokenizer, said):
    """The column student_text, tokenised as for training, finds its targets, which are what the endpoint said."""
    (out.parent / "held-out.jsonl").write_text('{"text": "something else"}\n')
    data = {"sources": [{"path": str(out), "text": "student_text"}], "length": 4, "cache": out.parent / "tokens"}
    data["validation"] = [{"path": str(out.parent / "held-out.jsonl")}]
    store, cache = load_corpus(parse(DataRecipe, data), tokenizer).train, open_cache(out / "targets")
    assert tokenizer_difference(tokenizer, load_tokenizer(cache.folder / TOKENIZER)) is None
    assert len(store) == len(said)
    first = cache.locate(store, np.arange(len(store)))
    for at, (text, told) in enumerate(said.items()):
        ids = store.document(at)
        assert tokenizer.decode(ids) == text + tokenizer.eos_token
        rows = cache.read([(int(first[at]), len(ids))])
        assert rows.ids[:-1, 0].tolist() == ids[:-1].tolist()
        values = [[candidate["logprob"] for candidate in entry["top_logprobs"]] for entry in told["content"]]
        assert np.allclose(rows.values[:-1], values, atol=1e-3)
        assert np.allclose(np.exp(rows.rest[:-1].astype(float)), 0.1, atol=1e-3)
        assert rows.ids[-1, 0] == tokenizer.eos_token_id
        assert (rows.values[-1].tolist(), rows.rest[-1]) == ([0.0, -np.inf, -np.inf], -np.inf)
        loss = top_k_divergence(*_student_of(rows))
        assert torch.isfinite(loss).all()
        assert loss[-1] == pytest.approx(math.log(tokenizer.vocab_size))


def _student_of(rows):
    """What an untrained student says at the entries, each token as likely as another; the target; the tail."""
    said = torch.full(rows.ids.shape, -math.log(tiny_tokenizer().vocab_size))
    return said, torch.from_numpy(rows.values), torch.from_numpy(rows.rest)


def test_another_tokenizer_ends_the_job_with_its_tokens_named(tmp_path, student, shared):
    stories = tokenizer_of("stories260K", shared)

    def script(prompt, number):
        text = f"Once upon a time {prompt}"
        return answer(text, logprobs=said_by(stories, stories(text, add_special_tokens=False)["input_ids"]))

    with serving(script) as server, pytest.raises(EndpointError, match=r"from the student's .*' Once'.*`student`"):
        ask(tmp_path, server.url, [f"p{n}" for n in range(20)], student=student, concurrency=1)
    assert sum(server.asked.values()) == 3


def test_without_a_student_they_are_kept_as_they_came_and_an_endpoint_without_any_ends_the_job(tmp_path):
    tokenizer = tiny_tokenizer()
    ids = tokenizer("The sum", add_special_tokens=False)["input_ids"]
    with serving(lambda p, n: answer("The sum", logprobs=said_by(tokenizer, ids))) as server:
        assert "student" not in ask(tmp_path, server.url, ["a"])
    row = json.loads((tmp_path / "out/logprobs.ndjson").read_text())
    assert [token[0] for token in row["tokens"]] == ["Th", "e", " sum"]
    with serving() as server:
        with pytest.raises(EndpointError, match="returns no log-probabilities"):
            ask(tmp_path, server.url, ["a", "b"], out=tmp_path / "none")
        assert sum(server.asked.values()) == 1


def test_a_tokenizer_without_bytes_and_a_folder_without_tokenizer_are_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(RequestError, match="neither byte-level nor of SentencePiece"):
        StudentTokens(words)
    bare = save(dense_llama(), tmp_path / "bare", tokenizer=False)
    with pytest.raises(SourceError, match="the folder has no tokenizer files"):
        ask(tmp_path, "http://127.0.0.1:1/v1", ["a"], student=str(bare))
