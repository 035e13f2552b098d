"""Lines of a shell: read, checked against the programs that they call, and run in this process."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import typer
import typer.main
from tests.docs.blocks import ROOT
from typer.testing import CliRunner

from smolmoe.cli import app
from smolmoe.errors import SmolmoeError, TrainingError, VerificationError
from smolmoe.recipe import PipelineRecipe, TrainRecipe
from smolmoe.recipe.align import AlignRecipe
from smolmoe.recipe.base import Recipe
from smolmoe.recipe.files import SHIPPED

SMOLMOE = typer.main.get_command(app)
TRAINS = ("train", "run", "sft", "dpo", "cpo")  # commands that take --set
SHELL = {"cat", "export", "mkdir", "tar", "tensorboard"}  # of any machine: nothing to check


class WrongLineError(AssertionError):
    """A line that says what is not so."""


@dataclass(frozen=True)
class Done:
    """What a command printed on stdout, and its exit code."""

    stdout: str
    code: int


def lines_of(text: str) -> list[str]:
    """The commands of a block, continued lines and here-documents each as one."""
    found: list[str] = []
    rest = iter(text.splitlines())
    for line in rest:
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + next(rest).strip()
        heredoc = re.search(r"<<'(\w+)'", line)
        if heredoc:
            body = []
            for inner in rest:
                if inner == heredoc[1]:
                    break
                body.append(inner)
            line = "\n".join([line, *body])
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(line)
    return found


def check(line: str, folder: Path) -> None:
    """Whether the programs, files, commands and options of a line exist, and its arguments fit.

    Words in capitals stand for what the reader has, `a|b` and `a | b` for either, `...` for further arguments; what
    follows two spaces explains the line.

    Raises:
        WrongLineError
    """
    commands = re.split(r"\s{2,}|\s#\s", line.strip().split("\n")[0])[0].split(" && ")
    for words in (words for command in commands for words in _alternatives(command)):
        program, arguments = words[0], words[1:]
        if program in SHELL:
            continue
        if program == "pip":
            _check_extras(arguments)
        elif program == "make":
            _check_targets(arguments)
        elif program in ("torchrun", "accelerate"):
            _check_smolmoe(arguments[arguments.index("smolmoe") + 1 :])
        elif program.endswith("python"):
            _check_script(arguments)
        elif program == "smolmoe":
            _check_smolmoe(arguments)
        else:
            raise WrongLineError(f"no such program here: {program}")


def _alternatives(command: str) -> Iterator[list[str]]:
    """`a b|c D` as `a b D` and `a c D`; upper-case alternatives stand for one value."""
    words = shlex.split(re.sub(r"(?<=[a-z])\s\|\s(?=[a-z])", "|", command), comments=True)
    choices = [word.split("|") if re.fullmatch(r"[a-z-]+(\|[a-z-]+)+", word) else [word] for word in words]
    yield from (list(choice) for choice in product(*choices))


def _check_smolmoe(arguments: list[str]) -> None:
    command, name, open_ended = SMOLMOE, "smolmoe", "..." in arguments
    rest = [argument for argument in arguments if argument != "..."]
    while (known := getattr(command, "commands", None)) is not None and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in known:
            raise WrongLineError(f"no such command: {name}")
        command = known[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in {*options, "--help"}]
    if unknown:
        raise WrongLineError(f"{name} has no {unknown[0]}")
    _check_changes(rest)
    if "--help" in rest or getattr(command, "commands", None) is not None:
        return
    numbers = [re.sub(r"^N$", "3", word) for word in rest]
    try:
        command.make_context(name, numbers, resilient_parsing=open_ended)
    except Exception as error:  # whatever the parser has to say
        raise WrongLineError(f"{name}: {getattr(error, 'message', None) or error}") from error
    if (
        name in TRAINS
        and rest
        and re.fullmatch(r"[a-z][a-z0-9-]*", rest[0])
        and not (SHIPPED / f"{rest[0]}.yaml").exists()
    ):
        raise WrongLineError(f"no such recipe: {rest[0]}")


def _check_changes(words: Sequence[str]) -> None:
    """The keys of `--set key=value` are keys of some recipe."""
    for option, change in pairwise(words):
        key = change.split("=")[0]
        if option != "--set" or key == key.upper():
            continue
        known = any(_leads(model, key.split(".")) for model in (TrainRecipe, PipelineRecipe, AlignRecipe))
        if not known and key != "section.key":
            raise WrongLineError(f"no recipe has the key {key}")


def _leads(model: type[Recipe], keys: list[str]) -> bool:
    if keys[0] not in model.model_fields:
        return False
    text = str(model.model_fields[keys[0]].annotation)
    if len(keys) == 1 or "dict" in text or "StageRecipe" in text:
        return True
    inner = next((part for part in Recipe.__subclasses__() if part.__name__ in re.findall(r"\w+", text)), None)
    return inner is not None and _leads(inner, keys[1:])


def _check_extras(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        for extra in extras.split(","):
            if extra not in project["optional-dependencies"]:
                raise WrongLineError(f"no such extra: {extra}")


def _check_targets(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in arguments:
        if "=" not in target and target not in targets:
            raise WrongLineError(f"no such target: {target}")


def _check_script(arguments: list[str]) -> None:
    """A script of this repository, whose source names the options."""
    if arguments[:2] == ["-m", "pytest"]:
        if not (ROOT / arguments[2]).exists():
            raise WrongLineError(f"no such file: {arguments[2]}")
        return
    script = ROOT / arguments[0]
    if not script.is_file():
        raise WrongLineError(f"no such script: {arguments[0]}")
    source = script.read_text(encoding="utf-8")
    for option in arguments[1:]:
        named = option.removeprefix("--").replace("-", "[-_]")
        if option.startswith("--") and not re.search(rf"\b{named}\b", source):
            raise WrongLineError(f"{arguments[0]} has no {option}")


def run(line: str, folder: Path, changes: Sequence[str] = ()) -> Done:
    """Run a line in `folder` (the working folder); what it trains with `changes`.

    Raises:
        WrongLineError: it fails, or is of a kind that is not run here.
    """
    first, _, body = line.partition("\n")
    written = re.fullmatch(r"cat > (\S+) <<'\w+'", first)
    if written:
        path = folder / written[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body + "\n", encoding="utf-8")
        return Done("", 0)
    words = shlex.split(first, comments=True)
    if words[0] == "mkdir":
        for name in words[1:]:
            if not name.startswith("-"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        return Done("", 0)
    if words[0] in ("pip", "make", "tensorboard"):
        check(first, folder)
        return Done("", 0)
    if words[0] != "smolmoe":
        raise WrongLineError(f"not run here: {words[0]}")
    words += [change for change in changes if change.startswith("--")]
    if any(word in TRAINS for word in words[1:3]):
        words += [part for change in changes if not change.startswith("--") for part in ("--set", change)]
    return invoke(words[1:])


def invoke(arguments: Sequence[str]) -> Done:
    """smolmoe with these arguments, in this process.

    Raises:
        WrongLineError: it ends with an error; a check that fails does not.
    """
    result = CliRunner().invoke(app, list(arguments))
    error = result.exception
    if error is None or isinstance(error, SystemExit):
        if result.exit_code not in (0, 1):
            raise WrongLineError(f"exit code {result.exit_code}: {result.stderr.strip()[-500:]}")
        return Done(result.stdout, result.exit_code)
    if isinstance(error, SmolmoeError) and not isinstance(error, VerificationError | TrainingError):
        raise WrongLineError(f"{error.field} = {error.value}: {error.message} {error.fix or ''}") from error
    raise error


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


_UNIT = r"(?:\s?(?:B|K|M|T|TB|GB|MB|kB|ms|s|min|h|days|nats|%))?\b%?"
_NUMBER = re.compile(rf"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?{_UNIT}")
_TIMES = re.compile(r"(?:about )?\d[\d,.]* (?:ms|s|min|h|days)\b(?! \w+ing)")


def shape(line: str, *, exact: bool = False) -> str:
    """A printed line without its numbers, or, `exact`, without its times alone: what must be the same elsewhere."""
    masked = _TIMES.sub("TIME", line) if exact else _NUMBER.sub("#", line)
    masked = re.sub(r"#(?:[ ,]+#)+", "#", masked)
    return " ".join(masked.replace("─", "").split())
