"""generate and chat on a terminal and through a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import sys
import time
from pathlib import Path
from types import TracebackType

import pytest
from helpers import chat_model, dense_llama, random_moe, save
from tests.cli.calls import Call
from tests.processes import PATIENCE, Child

from smolmoe.inference.generate import generate

_ON_TERMINAL = """
import os, sys
os.setsid()  # so that the terminal, opened next, is this process's own, and its Ctrl-C reaches it
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
sys.stdin = open(0, encoding="utf-8", errors="replace")
sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
sys.argv = ["smolmoe", *sys.argv[2:]]
from smolmoe.cli import main
main()
"""


class Terminal:
    """A command on a terminal.

    Attributes:
        shown: everything that it has shown so far.
    """

    def __init__(self, *arguments: object):
        self._ours, theirs = pty.openpty()
        self._child = Child(_ON_TERMINAL, os.ttyname(theirs), *arguments, env={"TERM": "dumb"})
        self._theirs = theirs
        self._read = 0
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._child.kill()
        self._child.__exit__(kind, error, at)
        os.close(self._ours)
        os.close(self._theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it shows this, after what was last waited for."""
        limit = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.shown[self._read :])) is None:
            assert time.monotonic() < limit, self.shown
            self._more()
            assert self._child.poll() is None or re.search(pattern, self.shown[self._read :]), self.shown
        self._read += found.end()
        return found

    def end(self) -> int | None:
        code = self._child.wait()
        self._more()
        return code

    def _more(self) -> None:
        """What it shows at once, and a little after; a program that never stops writing does not keep us here."""
        limit = time.monotonic() + 1
        while time.monotonic() < limit and select.select([self._ours], [], [], 0.05)[0]:
            self.shown += os.read(self._ours, 65536).decode(errors="replace").replace("\r\n", "\n")


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_moe("mixtral", max_position_embeddings=1_000_000)
    return chat_model(model, tmp_path_factory.mktemp("moe"))


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_pipe_has_one_message_per_line(
    smolmoe: Call, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.jsonl"
    lines = ["The sum", "", "/etc/hosts and four", "/undo", "/system def", "/retry", f"/save {file}", "/exit", "unread"]
    piped(monkeypatch, "\n".join(lines) + "\n")
    options = ("--temperature", 0, "--max-new-tokens", 8)
    done = smolmoe("chat", moe, *options)
    assert done.code == 0, done.err
    first = generate(moe, "The sum", temperature=0, max_new_tokens=8).texts[0]
    assert done.out.startswith(first + "\n")
    assert "> " not in done.out
    assert "Forgotten: /etc/hosts and four" in done.err
    assert done.err.count("cut at 8 tokens (--max-new-tokens)]") == 3
    saved = json.loads(file.read_text())["messages"]
    with_system = generate(moe, "The sum", system="def", temperature=0, max_new_tokens=8).texts[0]
    assert [message["content"] for message in saved] == ["def", "The sum", with_system]
    piped(monkeypatch, "The sum\n/reset\nThe sum\n")
    data = json.loads(smolmoe("chat", moe, *options, "--json").out)
    assert [answer["texts"] for answer in data] == [[first], [first]]


def test_a_mistake_in_a_pipe_ends_it(smolmoe: Call, moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "/nonsense\nThe sum\n")
    done = smolmoe("chat", moe)
    assert (done.code, done.out) == (2, "")
    assert "/nonsense: no such command" in done.err


def test_a_base_model_has_no_chat(smolmoe: Call, tmp_path: Path) -> None:
    base = save(dense_llama(), tmp_path)
    done = smolmoe("chat", base)
    assert done.code == 2
    assert "has no chat template" in done.err
    assert "or give a file with a --template" in done.err
    done = smolmoe("generate", base, "--prompt", "a", "--chat")
    assert "Use --raw" in done.err


def test_a_conversation_on_a_terminal(moe: Path) -> None:
    with Terminal("chat", moe, "--temperature", 0, "--max-new-tokens", 100_000) as terminal:
        terminal.wait_for(r"/help lists the commands\.\n> ")
        terminal.type("The sum\n")
        terminal.wait_for(r"The sum\n[^\n]+")  # the answer is streamed: it has begun, and is far from its end
        terminal.type("\x03")
        terminal.wait_for(r"\[\d+ tokens, .* tokens/s; interrupted\]\n> ")
        terminal.type("\x03")
        terminal.wait_for(r"\(Ctrl-D leaves\)\n> ")
        terminal.type("/nonsense\n")
        terminal.wait_for(r"no such command\.\n.*\n> ")
        terminal.type("/undo\n")
        terminal.wait_for(r"Forgotten: The sum\n> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.shown


def test_generate_streams_on_a_terminal(moe: Path) -> None:
    with Terminal("generate", moe, "--prompt", "The sum", "--temperature", 0, "--max-new-tokens", 100_000) as terminal:
        terminal.wait_for(r"device: .*\nformat: chat.*\nsampling: greedy \(as asked\)\n[^\n]+")
        terminal.type("\x03")
        assert terminal.end() != 0
    assert "Traceback" not in terminal.shown


def test_streamed_output_is_the_same(smolmoe: Call, moe: Path, tmp_path: Path) -> None:
    for option in ("--chat", "--raw"):
        options = ("generate", moe, "--prompt", "The sum", option, "--temperature", 1.5, "--max-new-tokens", 30)
        whole, streamed = smolmoe(*options), smolmoe(*options, "--stream")
        assert whole.out == streamed.out
        assert whole.out.startswith("The sum") == (option == "--raw")
    several = smolmoe("generate", moe, "--prompt", "a", "--num", 2, "--stream")
    assert several.code == 2
    assert "single text" in several.err
    stopped = smolmoe("generate", moe, "--prompt", "The sum", "--raw", "--stop", r"\n", "--stop", " ", "--json")
    assert json.loads(stopped.out)["ends"] in (["stop_text"], ["length"])


def test_an_empty_answer_is_explained(smolmoe: Call, tmp_path: Path) -> None:
    import torch

    model = dense_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # always writes token 0, <end>
    folder = chat_model(model, tmp_path)
    done = smolmoe("generate", folder, "--prompt", "The sum", "--temperature", 0)
    assert done.out == "\n"
    assert re.search(r"1 token, .*; ended by <pad> or <end>", done.err)
    assert "The answer is empty: the model ended it at once. To get text, --raw continues" in done.err
    raw = smolmoe("generate", folder, "--prompt", "The sum", "--raw", "--temperature", 0)
    assert "--chat sends it as a message" in raw.err


_WARNING = """
import sys, warnings
import smolmoe.inference.writer as writer
real = writer.end_tokens
def warned(*given):
    warnings.warn("from a library", UserWarning)
    return real(*given)
writer.end_tokens = warned
sys.argv = ["smolmoe", *sys.argv[1:]]
from smolmoe.cli import main
main()
"""


def test_no_librarys_warning_is_shown(moe: Path) -> None:
    with Child(_WARNING, "generate", moe, "--prompt", "The sum", "--max-new-tokens", "2") as child:
        assert child.wait() == 0, child.stderr
        assert "2 tokens" in child.stderr
        assert "from a library" not in child.stderr
