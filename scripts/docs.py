"""Write the generated parts of the documentation, or with --check say which of them are out of date.

Tables go between markers in README.md, docs/reference/families.md and the pages of `KEYS`; docs/reference/cli.md is
the help of every command, and docs/reference/api.md the signatures and docstrings of the public
functions.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.core
import typer.main

import smolmoe
from smolmoe.cli import app
from smolmoe.cli.options import help_of
from smolmoe.data.presets import PRESETS
from smolmoe.families.table import sources_table, targets_table
from smolmoe.recipe import (
    AlignRecipe,
    DataRecipe,
    PipelineRecipe,
    ProbeRecipe,
    Recipe,
    SelectRecipe,
    SourceRecipe,
    StageRecipe,
    TrainRecipe,
)
from smolmoe.recipe.align import AlignDataRecipe, LoraRecipe
from smolmoe.recipe.generation import GenerateRecipe
from smolmoe.recipe.import_model import ImportRecipe
from smolmoe.recipe.pipeline import ReportRecipe
from smolmoe.recipe.train import (
    CarryRecipe,
    DistillRecipe,
    EvaluationRecipe,
    GuidanceRecipe,
    ModelRecipe,
    ObjectiveRecipe,
    RoutingRecipe,
    SamplesRecipe,
)
from smolmoe.verbs.signature import fields_of

ROOT = Path(__file__).resolve().parents[1]
Keys = dict[str, tuple[tuple[str, type[Recipe]], ...]]
# Page of docs/ -> its tables -> what their keys begin with, and the sections that have them.
KEYS: dict[str, Keys] = {
    "reference/recipe.md": {
        "run": (
            ("", TrainRecipe),
            ("model.", ModelRecipe),
            ("evaluation.", EvaluationRecipe),
            ("samples.", SamplesRecipe),
            ("carry.", CarryRecipe),
        ),
        "data": (("data.", DataRecipe), ("data.sources[].", SourceRecipe)),
        "objective": (("objective.", ObjectiveRecipe), ("routing.", RoutingRecipe)),
        "guidance": (("guidance.", GuidanceRecipe),),
        "distill": (("distill.", DistillRecipe),),
        "pipeline": (
            ("", PipelineRecipe),
            ("stages[].", StageRecipe),
            ("stages[].import_model.", ImportRecipe),
            ("stages[].generate.", GenerateRecipe),
            ("stages[].report.", ReportRecipe),
        ),
        "probe": (("stages[].probe.", ProbeRecipe),),
        "select": (("stages[].select.", SelectRecipe),),
        "align": (("", AlignRecipe), ("data.", AlignDataRecipe), ("lora.", LoraRecipe)),
    },
}

# Keys whose sections have tables of their own, and what a pipeline fills in itself.
ELSEWHERE = ("data", "objective", "routing", "guidance", "distill", "stages[].probe.data", "stages[].probe.out")


def between(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no markers for {name}")
    return pattern.sub(lambda match: match[1] + content + "\n" + match[2], text)


def cli_page() -> str:
    """The help of every command, as a reader of the terminal sees it."""
    parts = ["# Command line\n\nGenerated from the program by `make docs`.\n"]
    for name, command in _commands(typer.main.get_command(app), "smolmoe"):
        context = typer.Context(command, info_name=name, max_content_width=110, terminal_width=110)
        parts.append(f"## {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group by its full name, groups before what is in them."""
    for own, command in group.commands.items():
        yield f"{name} {own}", command
        if isinstance(command, typer.core.TyperGroup):
            yield from _commands(command, f"{name} {own}")


GROUPS = {
    "Convert": ("verbs.convert", "surgery.experts.run"),
    "Train": ("pipeline.quickstart", "pipeline.specialise", "verbs.train", "data.fetch", "recipe.files"),
    "Understand": ("verbs.understand", "inference.expert_choice"),
    "Measure": ("verbs.measure",),
    "Ship": ("surgery.export.run", "reports.run", "hub.push"),
}


def api_page() -> str:
    """Every public function: how it is called, what it takes, what it raises."""
    commands = {
        getattr(command.callback, "verb", None): name
        for name, command in _commands(typer.main.get_command(app), "smolmoe")
    }
    parts = [
        "# Python\n\nGenerated from the program by `make docs`. Every command is a function with the same options. "
        "Where a recipe is taken, it\nmay be the name of a shipped recipe, a YAML file, a recipe object, or its "
        "fields as keywords:\n",
        "```python\nimport smolmoe\n",
        'smolmoe.train("tinystories-moe", trainer={"max_steps": 10}, out="runs/short")\n```\n',
    ]
    for heading, modules in GROUPS.items():
        names = [name for name in smolmoe.__all__ if smolmoe.module_of(name).removeprefix("smolmoe.") in modules]
        functions = dict.fromkeys(getattr(smolmoe, name) for name in names)
        parts += [f"## {heading}\n", *(_function(function, commands.get(function)) for function in functions)]
    return "\n".join(parts)


def _function(function: Any, command: str | None) -> str:
    """One function: its call, its docstring, and a table of what it takes."""
    signature = inspect.signature(function)
    lines = [f"### smolmoe.{function.__name__}\n", inspect.getdoc(function) or ""]
    summary, _, rest = lines[1].partition("\n\n")
    sections = re.sub(r"^(Args|Raises|Returns):$", r"**\1**\n", rest, flags=re.MULTILINE)
    sections = re.sub(r"^    (\S[^:]*): ", r"- `\1`: ", sections, flags=re.MULTILINE)
    sections = re.sub(r"^        ", "  ", sections, flags=re.MULTILINE)
    sections = re.sub(r"^    (?=\S)", "", sections, flags=re.MULTILINE)
    also = f" On the command line: `{command}`." if command else ""
    returns = signature.return_annotation
    result = "" if returns is inspect.Signature.empty else f"Returns: `{returns}`.\n"
    lines = [lines[0], f"{summary}{also}\n", *([sections.strip() + "\n"] if sections.strip() else []), result]
    rows = [f"| `{name}` | {help_of(field)} |" for name, (_, field) in fields_of(function).items()]
    return "\n".join([*lines, "| argument | meaning |", "| --- | --- |", *rows, ""]) if rows else "\n".join(lines)


def keys_table(sections: Sequence[tuple[str, type[Recipe]]]) -> str:
    """The keys of recipe sections: name, default, meaning; sections that have rows of their own are left out."""
    own = {section for _, section in sections}
    lines = ["| key | default | what |", "| --- | --- | --- |"]
    for prefix, section in sections:
        for name, field in section.model_fields.items():
            elsewhere = f"{prefix}{name}" in ELSEWHERE or field.description is None
            if elsewhere or _section_of(field.annotation) in own:
                continue
            default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
            lines.append(f"| `{prefix}{name}` | {default} | {field.description} |")
    return "\n".join(lines)


def _section_of(annotation: Any) -> Any:
    """The section that a key holds, one or none of it; None for values and lists."""
    parts = [annotation, *(() if typing.get_origin(annotation) is tuple else typing.get_args(annotation))]
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Recipe)), None)


def _shown(default: Any) -> str:
    if default is None or default in ((), {}):
        return ""
    if isinstance(default, str):
        return default.replace("\n", "\\n")
    return f"{default:,}" if isinstance(default, int) and default > 9999 else str(default).lower()


def pages() -> dict[Path, str]:
    """Path -> what the file should hold."""
    readme, families = ROOT / "README.md", ROOT / "docs" / "reference" / "families.md"
    return {
        readme: between(readme.read_text(encoding="utf-8"), "sources", sources_table()),
        families: between(
            between(families.read_text(encoding="utf-8"), "sources", sources_table()), "targets", targets_table()
        ),
        ROOT / "docs" / "reference" / "cli.md": cli_page(),
        ROOT / "docs" / "reference" / "api.md": api_page(),
        **{ROOT / "docs" / name: guide(name, (ROOT / "docs" / name).read_text(encoding="utf-8")) for name in KEYS},
    }


def presets_table() -> str:
    """The known data sets, with what is read of them."""
    lines = ["| preset | data set | columns |", "| --- | --- | --- |"]
    for name, preset in PRESETS.items():
        where = ", ".join(part for part in (preset.path, preset.name, preset.split) if part)
        optional = f" ({', '.join(preset.optional)})" if preset.optional else ""
        lines.append(f"| `{name}` | {where} | {', '.join(preset.columns)}{optional} |")
    return "\n".join(lines)


def guide(name: str, text: str) -> str:
    """The page with the tables of today."""
    if name == "reference/recipe.md":
        text = between(text, "presets", presets_table())
    for table, sections in KEYS[name].items():
        text = between(text, f"keys of {table}", keys_table(sections))
    return text


def main() -> None:
    stale = [p for p, text in pages().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if "--check" in sys.argv:
            print(f"{name} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(f"written: {name}")
    if stale and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
