"""A teacher over HTTP: what is asked, what is kept, and what a misbehaving endpoint costs."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from teacher_server import Reply, answer, error, free_port, serving

from smolmoe.data.sources import open_source
from smolmoe.errors import DataError, OutputError, RequestError
from smolmoe.recipe.base import parse
from smolmoe.recipe.data import SourceRecipe
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.results.teaching import TeachPlan
from smolmoe.teacher.endpoint import EndpointError
from smolmoe.teacher.job import plan, teach
from smolmoe.teacher.prompts import read_prompts

openai = pytest.importorskip("openai")
QUICK = 0.02  # seconds before a second try


def write_prompts(path, prompts):
    rows = [prompt if isinstance(prompt, dict) else {"prompt": prompt} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(tmp_path, url, prompts=None, **options):
    file = tmp_path / "prompts.jsonl"
    if prompts is not None:
        write_prompts(file, prompts)
    values = {"prompts": file, "out": tmp_path / "out", "base_url": url, "model": "teacher", **options}
    return parse(TeachRecipe, values)


def rows_of(folder: Path, name="rows.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_rows_keep_the_order_and_columns_of_the_prompts_and_train_as_they_are(tmp_path):
    prompts = [{"prompt": f"p{n}", "domain": "d", "model": "mine"} for n in range(12)]
    with serving(lambda p, n: answer(f"About {p}.", slow=0.02 * (int(p[1:]) % 3))) as server:
        asked = recipe(tmp_path, server.url, prompts, system="Be short.", max_tokens=7, temperature=0.5, top_p=0.9)
        report = teach(asked).to_json()
    rows = rows_of(tmp_path / "out")
    assert [row["prompt"] for row in rows] == [f"p{n}" for n in range(12)]
    assert rows[3] == {
        "prompt": "p3",
        "domain": "d",
        "given_model": "mine",
        "text": "User: p3\nAssistant: About p3.",
        "response": "About p3.",
        "model": "teacher-1",
        "finish_reason": "stop",
        "sample": 0,
        "prompt_tokens": 10,
        "answer_tokens": 5,
    }
    assert report["questions"]["answered"] == 12
    assert report["finish_reasons"] == {"stop": 12}
    assert report["tokens"] == {"prompt": 120, "answer": 60, "answers_without_count": 0}
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    sent = server.bodies[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be short."}
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"]) == (7, 0.5, 0.9)
    assert "logprobs" not in sent
    documents = list(open_source(SourceRecipe(path=str(tmp_path / "out"))).documents())
    assert [document.text for document in documents] == [row["text"] for row in rows]
    assert {document.domain for document in documents} == {"d"}


def test_a_prompt_in_several_rows_is_asked_once_for_each_sample(tmp_path):
    prompts = [{"prompt": "same", "id": 1}, {"prompt": "other", "id": 2}, {"prompt": "same", "id": 3}]
    with serving(lambda p, n: answer(f"{p} {n}")) as server:
        report = teach(recipe(tmp_path, server.url, prompts, samples=2)).to_json()
    assert server.asked == {"same": 2, "other": 2}
    rows = rows_of(tmp_path / "out")
    assert [(row["id"], row["sample"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert [row["response"] for row in rows[:2]] == [row["response"] for row in rows[4:]]
    assert report["questions"]["distinct"] == 4
    assert report["rows"]["written"] == 6


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (error(429, "slow down", Retry_After="0"), "HTTP 429"),
        (error(500, "oops"), "HTTP 500"),
        (Reply(b"<html>Bad gateway</html>", 502, {"Content-Type": "text/html"}), "HTTP 502"),
        (answer("late"), "timeout"),
        (answer("never whole", cut=20), "connection"),
        (answer("nothing at all", cut=0), "connection"),
        (Reply(b'{"choices": [{"mess'), "malformed"),
        (Reply(b"[1, 2]"), "malformed"),
        (Reply(b"fine", headers={"Content-Type": "text/plain"}), "malformed"),
        (Reply({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}), "malformed"),
        (Reply({"error": {"message": "overloaded"}}), "malformed"),
    ],
    ids=lambda value: value.replace(" ", "") if isinstance(value, str) else "",
)
def test_what_goes_wrong_once_is_tried_again(tmp_path, first, kind):
    bad = ("a", "c")

    def script(prompt, number):
        if prompt not in bad or number > 1:
            return answer(f"{prompt} at last")
        while kind == "timeout" and server.asked[prompt] == 1:  # it is late until it is asked again
            time.sleep(0.002)
        return first

    with serving(script) as server:
        timeout = 1.0 if kind == "timeout" else 30.0
        report = teach(recipe(tmp_path, server.url, list("abcd"), timeout=timeout), first_wait=QUICK).to_json()
    assert [row["response"] for row in rows_of(tmp_path / "out")] == [f"{p} at last" for p in "abcd"]
    if kind == "timeout":  # which a busy machine may be late for as well
        asked = sum(server.asked.values())
        assert all(server.asked[prompt] >= 2 for prompt in bad)
        assert report["requests"] == {"all": asked, "now": asked, "retried_now": {kind: asked - 4}}
        return
    assert server.asked == {"a": 2, "b": 1, "c": 2, "d": 1}
    assert report["requests"] == {"all": 6, "now": 6, "retried_now": {kind: 2}}
    wasted = 2 * 3 if "usage" in str(first.body) and kind == "malformed" else 0
    assert report["tokens"]["prompt"] == 4 * 10 + wasted


def test_an_answer_in_drops_is_timed_out(tmp_path):
    """The client's own timeout starts again with every part that arrives."""
    with serving(lambda p, n: answer("x", drip=0.1 if n == 1 else 0)) as server:
        report = teach(recipe(tmp_path, server.url, ["a"], timeout=1.0), first_wait=QUICK).to_json()
    assert report["requests"]["retried_now"].keys() == {"timeout"}
    assert rows_of(tmp_path / "out")[0]["response"] == "x"


def test_a_pause_that_the_endpoint_asks_for_is_kept_by_all(tmp_path):
    def script(prompt, number):
        return error(429, "slow down", Retry_After="1") if prompt == "b" and number == 1 else answer(prompt)

    with serving(script) as server:
        teach(recipe(tmp_path, server.url, list("abcdefgh"), concurrency=2), first_wait=QUICK)
    assert sum(server.asked.values()) == 9
    gaps = [later - earlier for earlier, later in pairwise(server.times)]
    assert max(gaps[:5]) >= 0.9  # b and c were under way, the others waited with b


def test_an_endpoint_that_asks_for_an_hour_ends_the_job(tmp_path):
    ends = pytest.raises(EndpointError, match=r"asks for a wait of 3600 s .*daily limit.*resume=True")
    with serving(lambda p, n: error(429, "daily limit", Retry_After="3600")) as server, ends:
        teach(recipe(tmp_path, server.url, ["a", "b"]))
    assert server.asked == {"a": 1}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(400, "temperature is too high"), "temperature is too high"),
        (error(401, "Incorrect API key provided"), "Incorrect API key.*OPENAI_API_KEY"),
        (error(403, "not in your country"), "not in your country"),
        (error(404, "The model `teacher` does not exist"), "does not exist.*`model`"),
        (error(429, "You exceeded your quota", "insufficient_quota"), "exceeded your quota"),
        (Reply({"detail": "Unexpected fields"}, 422), "Unexpected fields"),
    ],
    ids=["400", "401", "403", "404", "quota", "422"],
)
def test_a_refusal_ends_the_job_at_the_first_answer(tmp_path, reply, said):
    with serving(lambda p, n: reply) as server, pytest.raises(EndpointError, match=said):
        teach(recipe(tmp_path, server.url, list("abcdef")))
    assert server.asked == {"a": 1}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_to_another_host_is_not_followed(tmp_path, monkeypatch, status):
    monkeypatch.setenv("MY_KEY", "secret-key-of-mine")
    with serving() as other:
        place = other.url.removesuffix("/v1")
        moved = Reply({}, status, {"Location": f"{other.url}/chat/completions?x=1"})
        with (
            serving(lambda p, n: moved) as server,
            pytest.raises(EndpointError, match=f"redirects to {place}, which would receive the prompts") as caught,
        ):
            teach(recipe(tmp_path, server.url, ["private"], api_key_env="MY_KEY"))
    assert other.bodies == []
    assert sum(server.asked.values()) == 1  # and it is not asked again
    assert "secret" not in str(caught.value)


def test_a_redirect_on_the_same_host_is_followed(tmp_path):
    moved = Reply({}, 307, {"Location": "/v2/chat/completions"})
    with serving(lambda p, n: moved if n == 1 else answer("yes")) as server:
        assert teach(recipe(tmp_path, server.url, ["p"])).questions.answered == 1


@pytest.mark.parametrize(
    ("here", "location", "stays"),
    [
        ("https://a.example/v1", "https://a.example/v2", True),
        ("https://a.example/v1", "https://A.EXAMPLE:443/v2", True),
        ("http://a.example/v1", "https://a.example/v1", True),
        ("https://a.example/v1", "http://a.example/v1", False),
        ("https://a.example:80/v1", "http://a.example:80/v1", False),
        ("https://a.example/v1", "//b.example/v1", False),
        ("https://a.example/v1", "https://a.example.b.example/v1", False),
        ("http://a.example:8000/v1", "http://a.example:8001/v1", False),
        ("https://a.example/v1", "https://a.example:nowhere/", False),
    ],
)
def test_where_a_redirect_may_lead(here, location, stays):
    from types import SimpleNamespace

    from smolmoe.teacher.endpoint import _Elsewhere, _stay

    response = SimpleNamespace(
        status_code=308, headers={"location": location}, request=SimpleNamespace(url=here)
    )  # no such hosts: what is asked of a response is its own
    if stays:
        asyncio.run(_stay(response))
    else:
        with pytest.raises(_Elsewhere):
            asyncio.run(_stay(response))


def test_a_key_that_is_withdrawn_ends_the_job_but_keeps_what_is_there(tmp_path):
    def script(prompt, number):
        return answer(prompt) if prompt < "d" or withdrawn == [] else error(401, "revoked")

    withdrawn = [True]
    with serving(script) as server:
        asked = recipe(tmp_path, server.url, list("abcdefghij"), concurrency=2)
        with pytest.raises(EndpointError, match="revoked"):
            teach(asked)
        assert sum(server.asked.values()) <= 5
        assert [row["prompt"] for row in rows_of(tmp_path / "out")] == list("abc")
        withdrawn.clear()
        report = teach(asked, resume=True).to_json()
    assert report["rows"] == {"written": 10, "failed": 0, "left": 0}
    assert all(server.answered[prompt] == 1 for prompt in "abcdefghij")


def test_an_endpoint_that_is_down_shows_after_three_tries(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EndpointError, match=r"does not answer after 3 tries \(no connection"):
        teach(recipe(tmp_path, url, list("abc"), retries=50), first_wait=QUICK)


def test_an_endpoint_that_goes_down_ends_the_job_and_resume_goes_on(tmp_path):
    prompts = [f"p{n:02d}" for n in range(40)]
    up = [False]

    def script(prompt, number):
        return answer(prompt) if prompt < "p05" or up[0] else error(503, "gone")

    with serving(script) as server:
        asked = recipe(tmp_path, server.url, prompts, concurrency=1, retries=1)
        with pytest.raises(EndpointError, match=r"10 prompts in a row got no answer.*gone.*resume=True"):
            teach(asked, first_wait=QUICK)
        assert sum(server.asked.values()) == 5 + 10 * 2
        up[0] = True
        with pytest.raises(OutputError, match=r"contains 5 answers already.*resume=True"):
            teach(asked)
        report = teach(asked, resume=True).to_json()
    assert report["rows"] == {"written": 40, "failed": 0, "left": 0}
    assert all(server.answered[prompt] == 1 for prompt in prompts)
    assert report["requests"]["all"] == sum(server.asked.values())


def test_prompts_that_fail_for_good_are_listed_and_the_others_kept(tmp_path):
    def script(prompt, number):
        replies = {
            "long": error(400, "maximum context length", "context_length_exceeded"),
            "odd": error(400, "cannot be parsed"),
            "broken": error(500, "oops"),
            "filtered": answer("", finish="content_filter"),
            "silent": answer(" ", finish="length"),
        }
        return replies.get(prompt, answer(prompt))

    prompts = ["long", "fine", "odd", "broken", "filtered", "silent", "good"]  # the first one's fault is its own
    with serving(script) as server:
        asked = recipe(tmp_path, server.url, prompts, retries=1)
        report = teach(asked, first_wait=QUICK).to_json()
        assert server.asked == {**dict.fromkeys(prompts, 1), "broken": 2}
        assert [row["prompt"] for row in rows_of(tmp_path / "out")] == ["fine", "good"]
        failed = rows_of(tmp_path / "out", "failed.ndjson")
        assert [(row["row"], row["prompt"], row["tries"]) for row in failed] == [
            (0, "long", 1),
            (2, "odd", 1),
            (3, "broken", 2),
            (4, "filtered", 1),
            (5, "silent", 1),
        ]
        assert "maximum context length" in failed[0]["reason"]
        assert "finish_reason length" in failed[4]["reason"]
        assert report["rows"] == {"written": 2, "failed": 5, "left": 0}
        assert report["failures"]["reasons"] == {"HTTP 400": 2, "HTTP 500": 1, "content filter": 1, "empty": 1}
        assert report["tokens"]["answer"] == 4 * 5  # what was filtered or empty was paid for
        teach(asked, resume=True, first_wait=QUICK)
    assert (server.asked["fine"], server.asked["good"], server.asked["odd"]) == (1, 1, 2)


def test_the_cost_is_kept_to_and_more_goes_on_from_there(tmp_path):
    prompts = [f"p{n}" for n in range(20)]
    prices = {"price_in": 1000.0, "price_out": 2000.0, "concurrency": 3}  # 0.02 an answer
    with serving(lambda p, n: answer(p, slow=0.01)) as server:
        report = teach(recipe(tmp_path, server.url, prompts, max_cost=0.11, **prices)).to_json()
        assert report["stopped"] == "max_cost"
        assert report["cost"] == pytest.approx(0.10)
        assert report["rows"]["left"] == 15
        report = teach(recipe(tmp_path, server.url, max_cost=1.0, **prices), resume=True).to_json()
    assert report["cost"] == pytest.approx(0.40)
    assert report["stopped"] is None
    assert server.asked == dict.fromkeys(prompts, 1)


def test_answers_without_usage_are_counted_and_cannot_keep_to_a_cost(tmp_path, caplog):
    with serving(lambda p, n: answer(p, usage=False)) as server:
        report = teach(recipe(tmp_path, server.url, ["a", "b"], price_in=1.0, price_out=1.0)).to_json()
        assert report["tokens"] == {"prompt": 0, "answer": 0, "answers_without_count": 2}
        assert "2 answers have no token count" in caplog.text
        assert rows_of(tmp_path / "out")[0]["answer_tokens"] is None
        elsewhere = {"price_in": 1.0, "price_out": 1.0, "max_cost": 1.0, "out": tmp_path / "b"}
        with pytest.raises(EndpointError, match="no token count"):
            teach(recipe(tmp_path, server.url, **elsewhere))
    assert server.asked["a"] == 2
    assert server.asked["b"] == 1


def test_bounds_on_concurrency_and_rate(tmp_path):
    prompts = [f"p{n}" for n in range(14)]

    def script(prompt, number):
        while prompt != "p0" and server.most_at_once < 4:  # the first is asked alone, the next wait for the fourth
            time.sleep(0.002)
        return answer(prompt, slow=0.05)

    with serving(script) as server:
        teach(recipe(tmp_path, server.url, prompts, concurrency=4))
        assert server.most_at_once == 4
    begun = time.monotonic()
    with serving() as server:
        teach(recipe(tmp_path, server.url, prompts[:6], out=tmp_path / "b", requests_per_minute=300))
    assert server.times[-1] - begun >= 1  # five gaps of a fifth of a second


def test_other_options_are_refused_and_other_prompts_taken(tmp_path):
    with serving() as server:
        teach(recipe(tmp_path, server.url, ["a", "b"], temperature=0.5))
        with pytest.raises(OutputError, match=r"temperature: 0\.5 there, 1\.0 here"):
            teach(recipe(tmp_path, server.url, temperature=1.0), resume=True)
        report = teach(recipe(tmp_path, server.url, ["b", "c"], temperature=0.5), resume=True).to_json()
    assert server.asked == {"a": 1, "b": 1, "c": 1}
    assert [row["prompt"] for row in rows_of(tmp_path / "out")] == ["b", "c"]
    assert report["questions"]["answers_of_other_prompts"] == 1


def test_a_half_written_line_is_cut_off_and_a_damaged_one_is_not(tmp_path):
    with serving() as server:
        asked = recipe(tmp_path, server.url, ["a", "b", "c"], concurrency=1)
        teach(asked)
        journal = tmp_path / "out/journal.ndjson"
        whole = journal.read_bytes()
        journal.write_bytes(whole[:-9])
        teach(asked, resume=True)
        assert server.asked == {"a": 1, "b": 1, "c": 2}
        assert journal.read_bytes().count(b"\n") == 4
        assert len(rows_of(tmp_path / "out")) == 3
        lines = whole.splitlines(keepends=True)
        journal.write_bytes(b"".join([lines[0], lines[1][:-9] + b"\n", *lines[2:]]))
        with pytest.raises(DataError, match="line 2 is not an entry of a journal"):
            teach(asked, resume=True)
        assert journal.exists()


@pytest.mark.parametrize(
    ("rows", "options", "kind", "said"),
    [
        (["a", {"promt": "b"}], {}, DataError, 'line 2: no "prompt" among its keys .*Did you mean'),
        ([{"prompt": 7}], {}, DataError, "is a int, not text"),
        (["  ", {}], {}, DataError, "the file contains no prompt"),
        ([], {}, DataError, "the file contains no prompt"),
        (["a"], {"base_url": "localhost:8000"}, RequestError, "not the address"),
        (["a"], {"base_url": "http://me:secret@host/v1"}, RequestError, "must not contain a user, password or query"),
        (["a"], {"base_url": "http://host/v1?key=secret"}, RequestError, "must not contain a user, password or query"),
        (["a"], {"max_cost": 1.0}, RequestError, "max_cost needs price_in and price_out"),
        (["a"], {"student": "x"}, RequestError, "student needs top_logprobs"),
        (["a"], {"samples": 0}, RequestError, "greater than or equal to 1"),
        (["a"], {"api_key_env": "sk-123456789"}, RequestError, "no such environment variable"),
    ],
)
def test_bad_input(tmp_path, rows, options, kind, said):
    with pytest.raises(kind, match=said) as caught:
        teach(recipe(tmp_path, options.pop("base_url", "http://127.0.0.1:1/v1"), rows, **options))
    assert "secret" not in str(caught.value.to_json())
    assert "sk-123" not in str(caught.value.to_json())
    assert not (tmp_path / "out").exists()


def test_rows_without_a_prompt_are_left_out_and_counted(tmp_path, caplog):
    rows = [{"prompt": "a", "system": "Be brief."}, {"prompt": None}, {}, {"prompt": " "}, {"prompt": "half \ud800"}]
    asked = recipe(tmp_path, "http://127.0.0.1:1/v1", rows)
    assert [prompt.text for prompt in read_prompts(asked)] == ["a", "half ?"]
    said = {
        'rows have a column "system", which is not sent (see `system`)': 1,
        "rows without a prompt skipped": 3,
        'half a surrogate pair, read as "?"': 1,
    }
    caplog.clear()
    assert plan(asked).left_out == said
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "Sum up.", "context": "A text.", "response": "x", "category": "y"}, "Sum up.\nA text."),
        ({"question": "1 + 1?", "answer": "2"}, "1 + 1?"),
        ({"text": "Write f.", "code": "def f(): ...", "test_list": [], "task_id": 1}, "Write f."),
        ({"input": [{"role": "user", "content": "Hi"}], "output": "x", "system_prompt": "Be kind."}, "Be kind.\nHi"),
        ({"message_id": "a", "parent_id": None, "text": "Why?", "role": "prompter"}, "Why?"),
    ],
)
def test_rows_of_known_data_sets_are_asked_what_they_ask(tmp_path, row, asked):
    (prompt,) = read_prompts(recipe(tmp_path, "http://127.0.0.1:1/v1", [row]))
    assert prompt.text == asked


def test_rows_that_came_from_elsewhere_are_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/rows.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="not their journal"):
        teach(recipe(tmp_path, "http://127.0.0.1:1/v1", ["a"]))
    assert (tmp_path / "out/rows.jsonl").read_text() == "mine"


def test_a_plan_asks_and_writes_nothing(tmp_path):
    prices = {"max_tokens": 100, "price_in": 0.0, "price_out": 5000.0}
    planned = plan(recipe(tmp_path, "http://127.0.0.1:1/v1", ["abcd" * 10, "abcd" * 10, "x" * 4], **prices))
    assert planned == TeachPlan(
        prompts=3, left_out={}, requests=2, characters=44, prompt_tokens_about=11, cost_at_most_about=1.0
    )
    assert not (tmp_path / "out").exists()


def test_prompts_of_other_files(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    parquet.write_table(pyarrow.table({"q": ["three"], "level": [3]}), tmp_path / "p.parquet")
    with serving() as server:
        teach(_of(tmp_path, server.url, "p.txt"))
        assert [row["prompt"] for row in rows_of(tmp_path / "p.txt-out")] == ["one", "two"]
        teach(_of(tmp_path, server.url, "p.parquet", prompt_column="q"))
    row = rows_of(tmp_path / "p.parquet-out")[0]
    assert (row["prompt"], row["q"], row["level"]) == ("three", "three", 3)


def _of(tmp_path, url, name, **options):
    values = {"prompts": tmp_path / name, "out": tmp_path / f"{name}-out", "base_url": url, "model": "m", **options}
    return parse(TeachRecipe, values)
