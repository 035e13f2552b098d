"""Against real servers, started and stopped here: `transformers serve`, and llama-cpp-python's where it is there."""

from __future__ import annotations

import json
import os
import urllib.request
from contextlib import contextmanager

import pytest
from helpers import dense_llama, save
from teacher_server import free_port
from tests.processes import Child, wait_until

from smolmoe.errors import EndpointError
from smolmoe.recipe.base import parse
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.teacher.job import teach

pytest.importorskip("openai")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant: "
)


def answers(address):
    try:
        return urllib.request.urlopen(address).read() is not None
    except OSError:
        return False


@contextmanager
def running(command, health):
    """The server, from when it answers until the block ends."""
    with Child("import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__')", *command) as process:
        try:
            wait_until(lambda: answers(health), process)
            yield
        except BaseException:
            print(process.stdout, process.stderr)
            raise


def ask(tmp_path, url, model, prompts, **options):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    values = {"prompts": tmp_path / "p.jsonl", "out": tmp_path / "out", "base_url": url, "model": model, **options}
    return teach(parse(TeachRecipe, values)).to_json()


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_transformers_serve(tmp_path):
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    model = save(dense_llama(), tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    port = free_port()
    command = ["transformers.cli.transformers", "serve", str(model)]
    command += ["--port", str(port), "--device", "cpu", "--host", "127.0.0.1"]
    with running(command, f"http://127.0.0.1:{port}/health"):
        url, name = f"http://127.0.0.1:{port}/v1", str(model)
        prompts = ["The sum of three", "def add", "The sum of three"]
        report = ask(tmp_path, url, name, prompts, max_tokens=6, temperature=0.0, concurrency=2, system="Go on.")
        with pytest.raises(EndpointError, match="returns no log-probabilities"):
            ask(tmp_path, url, name, ["a", "b"], max_tokens=4, top_logprobs=3, out=tmp_path / "logprobs")
        with pytest.raises(EndpointError, match="the endpoint"):
            ask(tmp_path, url, "another/model", ["a"], out=tmp_path / "other", retries=1)
    assert report["rows"] == {"written": 3, "failed": 0, "left": 0}
    assert report["questions"]["answered"] == 2
    assert report["tokens"]["answer"] == 12
    assert report["finish_reasons"] == {"length": 2}
    rows = rows_of(tmp_path / "out")
    assert rows[0]["response"] == rows[2]["response"] != rows[1]["response"]
    assert rows[0]["response"].strip()
    assert all(row["prompt_tokens"] > 0 and row["answer_tokens"] == 6 for row in rows)


def test_llama_cpp_server(tmp_path):
    """SMOLMOE_GGUF names a model's file, since llama-cpp-python brings none."""
    pytest.importorskip("llama_cpp.server")
    file = os.environ.get("SMOLMOE_GGUF")
    if not file:
        pytest.skip("SMOLMOE_GGUF names no GGUF file to serve")
    port = free_port()
    command = ["llama_cpp.server", "--model", file, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--logits_all", "true", "--n_ctx", "256"]
    with running(command, f"http://127.0.0.1:{port}/v1/models"):
        url = f"http://127.0.0.1:{port}/v1"
        ask(tmp_path, url, "m", ["Once upon a time"], max_tokens=8, temperature=0.0, top_logprobs=5)
    row = json.loads((tmp_path / "out/logprobs.ndjson").read_text())
    assert "".join(token[0] for token in row["tokens"]).strip() == row["response"].strip()
    for token, _, logprob, candidates in row["tokens"]:
        assert candidates[0][:1] == [token]  # greedy
        assert candidates[0][2] == pytest.approx(logprob)
        assert len(candidates) == 5
