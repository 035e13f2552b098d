"""generate: continue texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command, Given
from smolmoe.core import units
from smolmoe.verbs import understand

if TYPE_CHECKING:
    from smolmoe.inference.generate import Generation, LoadedExperts
    from smolmoe.inference.offload import Traffic


def _about_experts(loaded: LoadedExperts | None, traffic: Traffic | None, device: str) -> Iterator[str]:
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


def show_generated(results: tuple[Generation, ...], given: Given) -> None:
    """The texts on stdout, the device and the experts on stderr."""
    _say_where(results)
    print(f"\n{'-' * 80}\n".join(result.prompt + text for result in results for text in result.texts))


def _to_json(results: tuple[Generation, ...], given: Given) -> Any:
    _say_where(results)
    return results[0].to_json() if len(results) == 1 else [result.to_json() for result in results]


def _say_where(results: tuple[Generation, ...]) -> None:
    from smolmoe.core.devices import device_name

    device = results[0].device
    print(f"device: {device} ({device_name(device)})", file=sys.stderr)
    for line in _about_experts(results[0].experts, results[0].offload, device):
        print(line, file=sys.stderr)


def _experts(given: list[str]) -> str | list[str]:
    names = [name.strip() for text in given for name in text.split(",")]
    return "auto" if names == ["auto"] else names


COMMAND = Command(
    understand.generate,
    show_generated,
    as_options=("prompt",),
    read={"experts": _experts, "expert_memory": lambda megabytes: megabytes * 10**6},
    to_json=_to_json,
)
