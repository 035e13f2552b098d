"""chat: a conversation on the terminal, or one message per line from a pipe."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command, Given
from smolmoe.cli.generate import READ, about_experts, how_it_ended, print_piece, speaking
from smolmoe.cli.output import print_error
from smolmoe.errors import RequestError, SmolmoeError
from smolmoe.verbs import understand

if TYPE_CHECKING:
    from smolmoe.inference.chat import Chat
    from smolmoe.inference.generate import Generation

PROMPT = "> "
OnText = Callable[[str], None]
_COMMAND = re.compile(r"/[a-z]+")


def _exit(chat: Chat, rest: str) -> str:
    raise EOFError


def _help(chat: Chat, rest: str) -> str:
    return "\n".join(f"{name:<13} {about}" for name, (_, about) in _COMMANDS.items())


def _reset(chat: Chat, rest: str) -> str:
    chat.reset()
    return "The history is empty."


def _system(chat: Chat, rest: str) -> str:
    chat.system = rest or None
    return f"System message from now on: {rest or 'the default of the template'}"


def _undo(chat: Chat, rest: str) -> str:
    return f"Forgotten: {chat.undo()}"


def _save(chat: Chat, rest: str) -> str:
    if not rest:
        raise RequestError("needs the name of a file.", field="/save", value="", fix="As in /save chat.jsonl.")
    return f"Saved: {chat.save(rest)}"


_RETRY = "/retry"
_COMMANDS: dict[str, tuple[Callable[[Chat, str], str] | None, str]] = {
    "/help": (_help, "list the commands"),
    _RETRY: (None, "answer the last message again, with another seed"),
    "/undo": (_undo, "forget the last message and its answer"),
    "/reset": (_reset, "forget all messages"),
    "/system TEXT": (_system, "set the system message; without TEXT the default of the template"),
    "/save FILE": (_save, "write the conversation as a row for `smolmoe align sft`"),
    "/exit": (_exit, "leave, as Ctrl-D does (Ctrl-C stops an answer)"),
}
_BY_WORD = {name.split()[0]: run for name, (run, _) in _COMMANDS.items()}


def _turn(chat: Chat, line: str, on_text: OnText | None) -> Generation | None:
    """Run one line: a message, or a command. Returns the answer, if there is one."""
    word, _, rest = line.strip().partition(" ")
    if word == _RETRY:
        return chat.retry(on_text)
    if not _COMMAND.fullmatch(word):
        return chat.say(line, on_text)
    run = _BY_WORD.get(word)
    if run is None:
        raise RequestError("no such command.", field="command", value=word, fix=f"Use {', '.join(_BY_WORD)}.")
    print(run(chat, rest.strip()), file=sys.stderr)
    return None


def _show_turn(chat: Chat, line: str, *, is_typed: bool) -> None:
    started = False

    def on_text(piece: str) -> None:
        nonlocal started
        started = True
        print_piece(piece)

    with _ctrl_c(chat) if is_typed else nullcontext():
        try:
            found = _turn(chat, line, on_text)
        finally:
            if started:
                print(flush=True)
    if found is not None:
        print(f"[{how_it_ended([found], found.seconds)}]", file=sys.stderr)
    if found is not None and not found.texts[0] and found.ends[0] != "interrupted":
        print(f"The answer is empty: the model ended it at once. {_RETRY} asks again.", file=sys.stderr)


@contextmanager
def _ctrl_c(chat: Chat) -> Iterator[None]:
    """Within, Ctrl-C ends the answer after its next token; a second one ends it at once."""
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        chat.interrupt()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _typed() -> Iterator[str]:
    """The lines that someone types."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its history and editing

    while True:
        try:
            if not sys.stdout.isatty():
                print(PROMPT, end="", file=sys.stderr, flush=True)
            yield input(PROMPT if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=sys.stderr)


def converse(chat: Chat, given: Given) -> None:
    """Answer lines until they end. Mistakes are printed; from a pipe they end the command."""
    is_typed = sys.stdin.isatty()
    if is_typed:
        print("Type a message; /help lists the commands.", file=sys.stderr)
    with speaking():
        for line in _typed() if is_typed else _piped():
            if not line.strip():
                continue
            try:
                _show_turn(chat, line, is_typed=is_typed)
            except EOFError:
                return
            except SmolmoeError as error:
                if not is_typed:
                    raise
                print_error(error, as_json=False)
            except KeyboardInterrupt:
                if not is_typed:
                    raise
                print("Stopped; the message is forgotten.", file=sys.stderr)


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\r\n")


def _to_json(chat: Chat, given: Given) -> list[Any]:
    """The answers to all lines of stdin."""
    found = []
    with speaking(), suppress(EOFError):
        for line in _piped():
            answer = _turn(chat, line, None) if line.strip() else None
            found += [] if answer is None else [answer.to_json()]
    return found


def _open(given: dict[str, Any], as_json: bool) -> Chat:
    with speaking():
        chat = understand.chat(**given)
    for about in about_experts(chat.experts, None, ""):
        print(about, file=sys.stderr)
    return chat


COMMAND = Command(understand.chat, converse, read=READ, display=_open, to_json=_to_json)
