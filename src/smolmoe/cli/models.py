"""generate, route, quickstart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import Json, print_json, print_rows, progress, quiet_libraries, tell
from smolmoe.core import units
from smolmoe.errors import DataError

if TYPE_CHECKING:
    from smolmoe.inference.generate import LoadedExperts
    from smolmoe.inference.offload import Traffic

MEGABYTE = 10**6


def add_to(app: typer.Typer) -> None:
    app.command()(generate)
    app.command()(route)
    app.command()(quickstart)


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a dense or MoE model.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; repeat it for several.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File of texts to continue, one a line.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation, in tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus: smallest set of tokens with this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said becomes less likely.")] = 1.0,
    num: Annotated[int, typer.Option(help="How many continuations.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Texts continued at once.")] = 16,
    experts: Annotated[
        str | None,
        typer.Option(
            metavar="auto|NAME|INDEX[,...]",
            help="Read and hold only these experts of an MoE; auto: those that the prompt calls for (see route).",
        ),
    ] = None,
    offload_experts: Annotated[
        bool, typer.Option("--offload-experts", help="Experts stay on the CPU; the routed ones come to the device.")
    ] = False,
    expert_memory: Annotated[
        float | None,
        typer.Option(
            help="With --offload-experts: MB for experts on the device.  [default: one layer's and one token's]"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Continue texts with a dense or MoE model, or with some experts of one."""
    quiet_libraries()
    from smolmoe.core.devices import device_name
    from smolmoe.inference.generate import generate_all

    results = generate_all(
        model,
        [*(prompt or []), *_lines(prompts)],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num=num,
        seed=seed,
        batch_size=batch_size,
        device=device,
        experts=experts if experts in (None, "auto") else [item.strip() for item in experts.split(",")],
        offload_experts=offload_experts,
        expert_memory=None if expert_memory is None else int(expert_memory * MEGABYTE),
    )
    device = results[0].device
    print(f"device: {device} ({device_name(device)})", file=sys.stderr)
    for line in _about_experts(results[0].experts, results[0].offload, device):
        print(line, file=sys.stderr)
    if as_json:
        print_json(results[0].to_json() if len(results) == 1 else [result.to_json() for result in results])
        return
    print(f"\n{'-' * 80}\n".join(result.prompt + text for result in results for text in result.texts))


def _lines(file: Path | None) -> list[str]:
    """The lines of a file that are not empty."""
    if file is None:
        return []
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("it is no text file that can be read.", field="prompts", value=str(file)) from error


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
            f"{units.size(traffic.moved_bytes)} moved, {traffic.hits} of {used} experts were there already"
        )


def route(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of an MoE.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text that an expert is wanted for.")],
    as_json: Json = False,
) -> None:
    """Say which named expert a prompt calls for, reading no more of the model than that takes."""
    quiet_libraries()
    from smolmoe.inference.expert_choice import route_prompt

    choice = route_prompt(model, prompt)
    if as_json:
        print_json(choice.to_json())
        return
    print(f"{choice.name}, confidence {choice.confidence:.0%}")
    print_rows([(name, f"{share:.1%}") for name, share in choice.shares.items()])
    read, total = units.size(choice.bytes.read), units.size(choice.bytes.total)
    print(f"{choice.tokens} tokens, {read} of {total} read, {units.duration(choice.seconds)}", file=sys.stderr)


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the pipeline.")] = Path("runs/quickstart"),
    minutes: Annotated[
        float | None, typer.Option(help="Most minutes of training, all together.  [default: the recipe's, 5]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of text, weights and training.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over in a folder that has a run.")] = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline `quickstart`: dense model, MoE, checks, report."""
    quiet_libraries()
    from smolmoe.cli.training import show_pipeline
    from smolmoe.pipeline.quickstart import quickstart as run

    with tell(show=not as_json), progress(show=not as_json) as report:
        result = run(out, minutes=minutes, seed=seed, overwrite=overwrite, report=report)
    print_json(result.to_json()) if as_json else show_pipeline(result)
