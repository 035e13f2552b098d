"""generate: answer or continue prompts."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import unescaped
from smolmoe.core import units
from smolmoe.verbs import understand

if TYPE_CHECKING:
    from smolmoe.inference.generate import Generation
    from smolmoe.inference.offload import Traffic
    from smolmoe.inference.writer import LoadedExperts


def about_experts(loaded: LoadedExperts | None, traffic: Traffic | None, device: str) -> Iterator[str]:
    """Which experts are loaded, and what was moved to the device."""
    if loaded is not None:
        why = "" if loaded.confidence is None else f" (chosen for the prompt, confidence {loaded.confidence:.0%})"
        read, held, total = units.size(loaded.bytes.read), units.size(loaded.bytes.held), units.size(loaded.bytes.total)
        yield f"experts: {', '.join(loaded.names)}{why}; {read} read and {held} held of {total}"
    if traffic is not None:
        used = traffic.hits + traffic.misses
        yield (
            f"offloaded: {units.size(traffic.experts_bytes)} of experts on the CPU, "
            f"{units.size(traffic.held_bytes)} for them on {device}; "
            f"{units.size(traffic.moved_bytes)} moved, {traffic.hits} of {used} experts were on the device already"
        )


def how_it_ended(results: Sequence[Generation], seconds: float) -> str:
    """Tokens, speed, and what ended the texts."""
    tokens = sum(sum(result.new_tokens) for result in results)
    speed = f", {tokens / seconds:.1f} tokens/s" if seconds else ""
    most = max(max(result.new_tokens) for result in results)
    words = {
        "end_token": f"ended by {' or '.join(results[0].end_tokens)}",
        "stop_text": "ended by a stop text",
        "length": f"cut at {_tokens(most)} (--max-new-tokens)",
        "interrupted": "interrupted",
    }
    ends = Counter(end for result in results for end in result.ends)
    said = ", ".join(words[end] if len(ends) == 1 else f"{count} {words[end]}" for end, count in ends.items())
    return f"{_tokens(tokens)}{speed}; {said}"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def why_empty(results: Sequence[Generation], chat: bool | None) -> str | None:
    """What to do about empty texts; None if no text is empty."""
    empty, count = (
        sum(text == "" for result in results for text in result.texts),
        sum(len(result.texts) for result in results),
    )
    if not empty:
        return None
    if results[0].format == "chat":
        fix = "--raw continues the text instead"
    elif chat is False:
        fix = "--chat sends it as a message, if the model has a chat template"
    else:
        fix = "use another prompt, or a higher --temperature"
    which = "The answer is empty" if count == 1 else f"{empty} of {count} answers are empty"
    return f"{which}: the model ended it at once. To get text, {fix}."


def show_generated(results: tuple[Generation, ...], given: Given) -> None:
    """The texts on stdout if they were not streamed; the experts and how the texts ended on stderr."""
    if given["stream"]:
        print(flush=True)
    else:
        shown = [
            text if result.format == "chat" else result.prompt + text for result in results for text in result.texts
        ]
        print(f"\n{'-' * 80}\n".join(shown), flush=True)
    _say_how(results, given)


def _to_json(results: tuple[Generation, ...], given: Given) -> Any:
    _say_how(results, given)
    return results[0].to_json() if len(results) == 1 else [result.to_json() for result in results]


def _say_how(results: tuple[Generation, ...], given: Given) -> None:
    batches = results[:: given.get("batch_size", 16)]
    lines = [
        *about_experts(results[0].experts, results[0].offload, results[0].device),
        how_it_ended(results, sum(result.seconds for result in batches)),
        why_empty(results, given.get("chat")),
    ]
    for line in lines:
        if line is not None:
            print(line, file=sys.stderr)


@contextmanager
def speaking() -> Iterator[None]:
    """Show no warning of another library, which would be inside of the text."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def _generate(
    given: dict[str, Any],
    as_json: bool,
    *,
    stream: Annotated[
        bool | None,
        Field(description="text printed while it is written (default: for a single text on a terminal)"),
    ] = None,
) -> Any:
    """Stream a single text to a terminal."""
    prompts = given.get("prompt", [])
    is_single = len(prompts) == 1 and "prompts" not in given and given.get("num", 1) == 1
    wanted = given.pop("stream", None)
    streamed = not as_json and (is_single and sys.stdout.isatty() if wanted is None else wanted)
    with speaking():
        found = understand.generate(**given, on_text=print_piece if streamed else None)
    given["stream"] = streamed
    return found


def _experts(given: list[str]) -> str | list[str]:
    names = [name.strip() for text in given for name in text.split(",")]
    return "auto" if names == ["auto"] else names


# Of the options that generate and chat share.
NAMES = {"chat": ("--chat/--raw",), "stream": ("--stream/--no-stream",)}
READ: dict[str, Any] = {
    "experts": _experts,
    "expert_memory": lambda megabytes: megabytes * 10**6,
    "stop": lambda texts: [unescaped(text) for text in texts],
}

COMMAND = Command(
    understand.generate,
    show_generated,
    as_options=("prompt",),
    names=NAMES,
    read=READ,
    display=_generate,
    to_json=_to_json,
)
