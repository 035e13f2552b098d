"""generate, quickstart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smolmoe.cli.output import Json, print_json, progress, quiet_libraries


def add_to(app: typer.Typer) -> None:
    app.command()(generate)
    app.command()(quickstart)


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a dense or MoE model.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation, in tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus: smallest set of tokens with this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said becomes less likely.")] = 1.0,
    num: Annotated[int, typer.Option(help="How many continuations.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Continue a text with a dense or MoE model."""
    quiet_libraries()
    from smolmoe.generation import generate as run

    result = run(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num=num,
        seed=seed,
        device=device,
    )
    if as_json:
        print_json(result.to_json())
        return
    print(f"\n{'-' * 80}\n".join(prompt + text for text in result.texts))


def quickstart(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over in a folder that has a run.")] = False,
    as_json: Json = False,
) -> None:
    """The whole way on text of this Python installation: train dense, upcycle, verify, train on, report."""
    quiet_libraries()
    from smolmoe.demo.run import quickstart as run

    with progress(show=not as_json) as report:
        result = run(out, seed=seed, overwrite=overwrite, report=report)
    if as_json:
        print_json(result.to_json())
    else:
        print(result.text())
    raise typer.Exit(0 if result.verified else 1)
