"""Commands of commands: `smolmoe data ...` and `smolmoe align ...`."""

from __future__ import annotations

import typer

from smolmoe.cli import aligning, correcting, selecting, teaching

data_app = typer.Typer(
    help="Text to train on: chosen, explained, written by a teacher, fetched.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
data_app.command()(selecting.select)
data_app.command()(selecting.score)
data_app.command()(teaching.teach)
data_app.command()(teaching.fetch)

align_app = typer.Typer(
    help="Train a model on answers or preferences, make the preferences, measure what came of it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
aligning.add_to(align_app)
correcting.add_to(align_app)


def add_to(app: typer.Typer) -> None:
    app.add_typer(data_app, name="data")
    app.add_typer(align_app, name="align")
