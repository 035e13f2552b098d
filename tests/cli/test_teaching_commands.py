"""data teach as a process: killed, interrupted, and what becomes of its key; data fetch's list."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from typing import NamedTuple

import pytest
from teacher_server import answer, error, serving
from tests.processes import Child, wait_until

pytest.importorskip("openai")

# The two commands as `smolmoe data` has them, and errors as `smolmoe` reports them.
PROGRAM = """
import sys
from smolmoe.cli import app
from smolmoe.cli.output import print_error
from smolmoe.errors import SmolmoeError
try:
    app(["data", *sys.argv[1:]])
except SmolmoeError as error:
    print_error(error, as_json="--json" in sys.argv)
    sys.exit(2)
"""
KEY = "sk-smolmoe-0123456789abcdef"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments, **environment):
    with start(*arguments, **environment) as process:
        return Done(process.wait(), process.stdout, process.stderr)


def start(*arguments, **environment):
    return Child(PROGRAM, *arguments, env={"OPENAI_API_KEY": KEY, "NO_COLOR": "1", **environment})


def teach_options(tmp_path, url, count=0, *more):
    file = tmp_path / "prompts.jsonl"
    if count:
        file.write_text("".join(json.dumps({"prompt": f"p{n:03d}"}) + "\n" for n in range(count)))
    return ["teach", "--prompts", file, "--out", tmp_path / "out", "--base-url", url, "--model", "m", *more]


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def journal_ids(tmp_path):
    whole = (tmp_path / "out/journal.ndjson").read_bytes()
    return [json.loads(line)["id"] for line in whole[: whole.rfind(b"\n")].splitlines()[1:]]


def test_after_a_kill_no_answered_prompt_is_asked_again_and_none_is_lost(tmp_path):
    """Of what was asked twice, every prompt was under way at the kill: sent, and not yet in the journal."""
    total, at_once, answers = 60, 5, [0]

    def script(prompt, number):
        while sum(server.answered.values()) >= answers[0]:
            time.sleep(0.002)
        return answer(f"About {prompt}, {number}.")

    with serving(script) as server:
        options = teach_options(tmp_path, server.url, total, "--concurrency", at_once)
        for kill_after in (12, 30):
            answers[0] = kill_after
            with start(*options, "--resume") as process:
                wait_until(lambda: sum(server.answered.values()) >= kill_after, process)  # noqa: B023 - called at once
            kept = len(journal_ids(tmp_path))
            assert kept >= kill_after - at_once - 5
        answers[0] = total * 2
        with (tmp_path / "out/journal.ndjson").open("ab") as journal:
            journal.write(b'{"id": "half-writ')  # as a kill within a write leaves it
        done = run(*options, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["questions"] == {
        "distinct": total,
        "answered": total,
        "failed": 0,
        "left": 0,
        "answered_now": total - kept,
        "answers_of_other_prompts": 0,
    }
    ids = journal_ids(tmp_path)
    assert len(ids) == len(set(ids)) == total
    assert [row["prompt"] for row in rows_of(tmp_path / "out/rows.jsonl")] == [f"p{n:03d}" for n in range(total)]
    assert set(server.asked) == {f"p{n:03d}" for n in range(total)}
    assert sum(server.asked.values()) - total <= 2 * at_once  # two kills, what was under way at each


def test_ctrl_c_waits_for_what_is_under_way_and_writes_the_rows(tmp_path):
    stopping = threading.Event()

    def script(prompt, number):
        if sum(server.answered.values()) >= 8:
            stopping.wait()
        return answer(prompt)

    with serving(script) as server:
        options = teach_options(tmp_path, server.url, 40, "--concurrency", 4)
        with start(*options) as process:
            wait_until(lambda: sum(server.answered.values()) >= 8, process)
            process.send_signal(signal.SIGINT)
            wait_until(lambda: "stopping: waiting for" in process.stderr, process)
            stopping.set()
            assert process.wait() == 130, process.stderr
            stdout, stderr = process.stdout, process.stderr
        assert "Traceback" not in stderr
        assert "rows left to ask: " in stdout
        assert "(interrupted)" in stdout
        assert "--resume" in stdout
        rows = rows_of(tmp_path / "out/rows.jsonl")
        assert len(rows) == sum(server.asked.values())  # nothing that was sent was lost
        done = run(*options, "--resume")
    assert done.returncode == 0, done.stderr
    assert set(server.asked.values()) == {1}
    assert len(rows_of(tmp_path / "out/rows.jsonl")) == 40


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    ended = threading.Event()

    def script(prompt, number):
        assert prompt == "p000" or ended.wait()
        return answer(prompt)

    with serving(script) as server, start(*teach_options(tmp_path, server.url, 10, "--concurrency", 2)) as process:
        wait_until(lambda: sum(server.asked.values()) >= 3, process)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping: waiting for 2 requests" in process.stderr, process)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, process.stderr
        ended.set()
    assert [row["prompt"] for row in rows_of(tmp_path / "out/rows.jsonl")] == ["p000"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    done = threading.Event()

    def script(prompt, number):
        assert prompt == "p000" or done.wait()
        return answer(prompt)

    with serving(script) as server:
        options = teach_options(tmp_path, server.url, 9)
        with start(*options) as process:
            wait_until(lambda: len(server.asked) > 1, process)
            second = run(*options, "--resume")
        done.set()
    assert second.returncode == 2
    assert "another process is writing there" in second.stderr


def test_the_key_is_sent_and_written_nowhere(tmp_path):
    """The server says it back in an answer, in errors that are tried again, of one prompt, and in fatal ones."""

    def script(prompt, number):
        if number == 1 and prompt in ("p000", "p002"):
            return error(500, f"cannot serve Bearer {KEY}")
        if prompt == "p003":
            return error(400, f"bad request by {KEY}")
        if prompt == "p005":
            return error(401, f"Incorrect API key provided: {KEY}")
        return answer(f"You said {KEY}.", finish=f"stop {KEY}")

    with serving(script) as server:
        options = teach_options(tmp_path, server.url, 6, "--concurrency", 1)
        done = run(*options, OPENAI_LOG="debug")
        as_json = run(*options, "--resume", "--json")
        assert {body["authorization"] for body in server.bodies} == {f"Bearer {KEY}"}
    assert (done.returncode, as_json.returncode) == (2, 2)
    assert "Incorrect API key provided: [key]" in done.stderr
    assert "You said [key]." in (tmp_path / "out/rows.jsonl").read_text()
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"journal.ndjson", "rows.jsonl", "failed.ndjson", "report.json"}
    for text in (done.stdout, done.stderr, as_json.stdout, as_json.stderr, *(file.read_text() for file in files)):
        assert KEY not in text


def test_no_exception_holds_the_key(tmp_path, monkeypatch):
    from smolmoe.errors import EndpointError, RequestError
    from smolmoe.recipe.base import parse
    from smolmoe.recipe.teach import TeachRecipe
    from smolmoe.teacher.job import teach

    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    with serving(lambda p, n: error(401, f"no: {KEY}")) as server:
        values = {"prompts": tmp_path / "p.jsonl", "out": tmp_path / "out", "base_url": server.url, "model": "m"}
        recipe = parse(TeachRecipe, {**values, "api_key_env": "TEACHER_KEY"})
        monkeypatch.setenv("TEACHER_KEY", KEY)
        with pytest.raises(EndpointError) as refused:
            teach(recipe)
        monkeypatch.setenv("TEACHER_KEY", f"{KEY}\nX-Injected: {KEY}")
        with pytest.raises(RequestError, match="invalid characters") as unusable:
            teach(recipe)
    for caught in (refused.value, unusable.value):
        error_: BaseException | None = caught
        while error_ is not None:
            assert KEY not in repr(error_) + str(error_)
            assert not hasattr(error_, "request")  # whose headers hold it
            error_ = error_.__cause__ or error_.__context__


def test_a_shortfall_is_told_and_exits_1(tmp_path):
    with serving(lambda p, n: error(500, "no") if p == "p002" else answer(p)) as server:
        options = teach_options(tmp_path, server.url, 4, "--retries", 0)
        done = run(*options)
        dry = run(*options, "--dry-run", "--json")
    assert done.returncode == 1
    assert "rows without an answer: 1 (HTTP 500 1)" in done.stdout
    assert dry.returncode == 0
    assert json.loads(dry.stdout)["requests"] == 4
    assert sum(server.asked.values()) == 4


def test_the_list_of_presets_and_what_cannot_be_fetched(tmp_path):
    listed, refused = run("fetch"), run("fetch", "codeparrot", "--out", tmp_path / "out", "--json")
    assert listed.returncode == 0
    assert "mixed (ask: --accept-licence)" in listed.stdout
    assert "instruction, context, response" in listed.stdout
    assert refused.returncode == 2
    assert json.loads(refused.stdout)["fix"].endswith("--accept-licence mixed")


def test_without_the_openai_package_it_says_what_to_install(tmp_path, monkeypatch):
    from smolmoe.errors import RequestError
    from smolmoe.recipe.base import parse
    from smolmoe.recipe.teach import TeachRecipe
    from smolmoe.teacher.job import plan, teach

    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    values = {"prompts": tmp_path / "p.jsonl", "out": tmp_path / "out", "base_url": "http://h/v1", "model": "m"}
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RequestError, match=r"pip install 'smolmoe\[teach\]'"):
        teach(parse(TeachRecipe, values))
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequestError, match=r"pip install 'smolmoe\[teach\]'"):
        plan(parse(TeachRecipe, values))
