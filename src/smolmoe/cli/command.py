"""A command made of a public function: the options are the function's arguments; only the display is added here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import typer

from smolmoe.cli.options import parameter, value_of
from smolmoe.cli.output import Json, Quiet, print_json, quiet_libraries, tell
from smolmoe.cli.progress import START, progress
from smolmoe.cli.spelling import as_options
from smolmoe.errors import SmolmoeError
from smolmoe.verbs.signature import POSITIONAL, fields_of

Given = Mapping[str, Any]  # what the verb was called with


def _plain(result: Any, given: Given) -> Any:
    """A result as plain data: its own form, or the fields of a dataclass."""
    return result.to_json() if hasattr(result, "to_json") else asdict(result)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        verb: the public function.
        show: prints the result, given it and the arguments.
        forecast: the same with --dry-run; default `show`.
        only: the fields that are options; all others of a recipe file are set by --set.
        as_options: positional arguments of the function that are options here.
        names: option names that differ from the field's.
        read: field -> function from the given text to the value, if the type is not enough.
        envvars: field -> environment variable.
        display: instead of the function, is called with its arguments and whether --json is given; its further keywords
            are options, about the terminal only.
        to_json: what --json prints.
        exit_code: for a result.
        doing: what is shown until the verb reports progress; without it, a verb that cannot report any shows nothing.
    """

    verb: Callable[..., Any]
    show: Callable[[Any, Given], None]
    forecast: Callable[[Any, Given], None] | None = None
    only: tuple[str, ...] | None = None
    as_options: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    envvars: Mapping[str, str] = field(default_factory=dict)
    display: Callable[..., Any] | None = None
    to_json: Callable[[Any, Given], Any] = _plain
    exit_code: Callable[[Any, Given], int] = lambda result, given: 0
    doing: str | None = None

    def build(self, name: str) -> Any:
        """The command as typer runs it."""
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        self.add_to(app, name)
        return typer.main.get_command(app)

    def add_to(self, app: typer.Typer, name: str | None = None) -> None:
        """Make it a command of an app, by default under the function's name."""
        app.command(name or self.verb.__name__.replace("_", "-"))(self.callback())

    def callback(self) -> Callable[..., None]:
        """The function that typer calls, with a parameter for each of the verb's fields."""
        known = {name: each for name, each in fields_of(self.verb).items() if self.only is None or name in self.only}
        known |= fields_of(self.display) if self.display else {}
        parameters = [
            parameter(
                name,
                info,
                argument=place.kind is POSITIONAL and name not in self.as_options,
                names=self.names.get(name, ()),
                envvar=self.envvars.get(name),
            )
            for name, (place, info) in known.items()
        ]

        def call(**values: Any) -> None:
            as_json, quiet = values.pop("as_json"), values.pop("quiet")
            given = {name: value for name, value in values.items() if value is not None and value != []}
            try:
                for name, value in given.items():
                    read = self.read.get(name)
                    given[name] = value_of(name, value, known[name][1]) if read is None else read(value)
                result = self._run(given, as_json=as_json, show=not (as_json or quiet))
                show = self.forecast if self.forecast and given.get("dry_run") else self.show
                print_json(self.to_json(result, given)) if as_json else show(result, given)
            except SmolmoeError as error:
                as_options(error, parameters)
                raise
            if code := self.exit_code(result, given):
                raise typer.Exit(code)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters += [
            inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
            inspect.Parameter("as_json", keyword, default=False, annotation=Json),
        ]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        call.__doc__ = _help(self.verb)
        call.__name__ = self.verb.__name__
        call.verb = self.verb  # type: ignore[attr-defined]
        return call

    def _run(self, given: dict[str, Any], *, as_json: bool, show: bool) -> Any:
        if self.display is not None:
            with quiet_libraries(), tell(show):
                return self.display(given, as_json)
        reports = "report" in inspect.signature(self.verb).parameters
        show = show and (reports or self.doing is not None)
        with quiet_libraries(), tell(show), progress(show, self.doing or START) as report:
            return self.verb(**given, report=report) if reports else self.verb(**given)


def _help(verb: Callable[..., Any]) -> str:
    """The docstring without its sections, which are for Python callers."""
    text = inspect.getdoc(verb) or ""
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith(("Args:", "Raises:", "Returns:")))
