"""`smolmoe specialise`: an expert for each domain of a text, from a model and the text alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core import units
from smolmoe.core.files import followed, made, place, write_text
from smolmoe.core.progress import Progress
from smolmoe.core.run_folder import RECORDS, begin_folder
from smolmoe.errors import RequestError
from smolmoe.pipeline.own_text import Named
from smolmoe.recipe.files import load
from smolmoe.recipe.upcycle import Shared
from smolmoe.recipe.words import DryRun, Overwrite, Seed

if TYPE_CHECKING:
    from smolmoe.pipeline.fitting import Cost, Fitted, Request
    from smolmoe.pipeline.run import PipelineResult

logger = logging.getLogger(__name__)

RECIPE = "recipe.yaml"
REQUEST = "specialise.json"
CHOICES = "choices.json"

Model = Annotated[str | Path, Field(description="folder or hub id of a dense model")]
Data = Annotated[
    Named,
    Field(
        description="text: file, folder, preset or hub:owner/name[:config][:split]; NAME=PATH gives all its documents "
        "the domain NAME"
    ),
]
Validation = Annotated[Named, Field(description="separate held-out text, as the data (default: a share of the data)")]
DomainColumn = Annotated[str, Field(description="column with the domain of a row")]
TextColumn = Annotated[str, Field(description="column with the text of a row")]
ByFolder = Annotated[bool, Field(description="domain of each file from the subfolder that it is in")]
Hours = Annotated[float | None, Field(gt=0, description="hours for everything (default: one pass over the text)")]
Minutes = Annotated[float | None, Field(gt=0, description="the same in minutes")]
Experts = Annotated[int | None, Field(ge=2, description="number of experts (default: one per domain)")]
TopK = Annotated[int | None, Field(ge=1, description="experts per token (default: 1; without domains 2)")]
SharedExpert = Annotated[
    Shared, Field(description="shared expert: none, full, residual, half of the neurons, or its width in neurons")
]


@dataclass(frozen=True)
class Specialisation:
    """What was, or would be, done.

    Attributes:
        out: its folder.
        choices: the values that were chosen, with their reasons: `name`, `shown`, `why`, `keys`.
        costs: what each stage takes.
        notes: what the user should know first.
        result: of the pipeline; None for a dry run.
    """

    out: Path
    choices: tuple[Mapping[str, Any], ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    result: PipelineResult | None = None

    @property
    def seconds(self) -> float:
        """Of all stages, estimated."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def disk(self) -> int:
        """Bytes that the output takes, estimated."""
        return sum(cost.disk for cost in self.costs)

    @property
    def accuracy(self) -> float | None:
        """Share of held-out tokens whose first choice is their domain's expert, in the last third of the layers.

        None for a dry run, and without domains.
        """
        return self._of("probe", "accuracy")

    @property
    def losses(self) -> dict[str, dict[str, float]]:
        """Domain ("all" first) -> model (source, dense on the same text, MoE) -> held-out loss, nats per token."""
        found: dict[str, dict[str, float]] = {}
        for model in self._of("compare", "models") or ():
            for domain, loss in {"all": model["loss"], **model["by_domain"]}.items():
                found.setdefault(domain, {})[model["name"]] = loss["value"]
        return found

    @property
    def verdict(self) -> tuple[str, ...]:
        """The comparison in words."""
        return tuple(self._of("compare", "verdict") or ())

    @property
    def page(self) -> Path | None:
        """The report."""
        found = self._of("page", "page")
        return None if found is None else Path(found)

    @property
    def model(self) -> Path:
        """The folder of the specialised MoE."""
        return self.out / "experts" / "model"

    def _of(self, stage: str, key: str) -> Any:
        stages = {} if self.result is None else self.result.stages
        return stages[stage]["result"].get(key) if stage in stages else None

    def to_json(self) -> dict[str, Any]:
        forecast = {"seconds": self.seconds, "disk_bytes": self.disk, "stages": [asdict(cost) for cost in self.costs]}
        found = {"out": str(self.out), "choices": self.choices, "forecast": forecast, "notes": self.notes}
        if self.result is None:
            return found
        ended: dict[str, Any] = {"accuracy": self.accuracy, "losses": self.losses, "verdict": self.verdict}
        ended |= {"model": str(self.model), "page": None if self.page is None else str(self.page)}
        return {**found, **ended, "stages": self.result.stages}


def specialise(
    model: Model,
    data: Data,
    out: Annotated[str | Path, Field(description="output folder")] = Path("runs/specialise"),
    *,
    validation: Validation = (),
    domain_column: DomainColumn = "domain",
    text: TextColumn = "text",
    by_folder: ByFolder = False,
    hours: Hours = None,
    minutes: Minutes = None,
    experts: Experts = None,
    top_k: TopK = None,
    shared: SharedExpert = "none",
    seed: Seed = 0,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    report: Progress | None = None,
) -> Specialisation:
    """Turn a dense model into an expert for each domain of a text.

    Sizes are chosen from the model, the text and this machine. The MoE is compared with the dense model trained on the
    same text. The recipe is OUT/recipe.yaml; the same command again continues.

    Raises:
        DataError: the text cannot be used; names the file and the row.
        RequestError: the machine has too little memory or disk, or an option does not fit the text.
        OutputError: `out` holds a run with other settings, or something else.
    """
    from smolmoe.pipeline.fitting import fit
    from smolmoe.pipeline.run import run
    from smolmoe.recipe import PipelineRecipe, parse

    out = Path(out)
    request = _request(
        model, data, validation, domain_column, text, by_folder, hours, minutes, experts, top_k, shared, seed
    )
    if dry_run:
        return _specialisation(out, fit(request, out, report=report))
    with made(followed(out)):
        found = _begin(out, request, overwrite=overwrite, report=report)
    (out / RECORDS).mkdir(exist_ok=True)
    for line in found_lines(found):
        logger.info("%s", line)
    recipe = parse(PipelineRecipe, load(str(out / RECIPE), kind="pipeline") | {"out": str(out)})
    if overwrite:
        _remove_other_stages(out, {stage.name for stage in recipe.stages})
    start = recipe.stages[0].name if overwrite else None
    result = run(recipe, start=start, report=report)
    return Specialisation(out, found.choices, found.costs, found.notes, result)


def _begin(out: Path, request: Request, *, overwrite: bool, report: Progress | None) -> Specialisation:
    """Write the recipe, or read it if an earlier run did; a new folder is left empty if that fails."""
    from smolmoe.core.contents import remove
    from smolmoe.pipeline.fitting import fit

    is_new = not (out / REQUEST).is_file()
    begin_folder(
        out,
        request.to_json(),
        what="a specialisation",
        record=REQUEST,
        made=(RECIPE, CHOICES) if overwrite else (),
        overwrite=overwrite,
    )
    if (out / RECIPE).is_file() and (out / CHOICES).is_file():
        logger.info("%s: continues with its recipe", out)
        return _known(out)
    try:
        fitted = fit(request, out, report=report)
        found = _specialisation(out, fitted)
        _write(out, request, fitted, found)
    except BaseException:  # an interruption too
        if is_new:
            remove(out, REQUEST, CHOICES, RECIPE)
        raise
    return found


def _request(
    model: str | Path,
    data: Named,
    validation: Named,
    domain_column: str,
    text: str,
    by_folder: bool,
    hours: float | None,
    minutes: float | None,
    experts: int | None,
    top_k: int | None,
    shared: Any,
    seed: int,
) -> Request:
    from smolmoe.pipeline.fitting import Request

    if hours is not None and minutes is not None:
        raise RequestError("is given in hours too.", field="minutes", value=minutes, fix="Give one of the two.")
    minutes = 60 * hours if hours is not None else minutes
    if minutes is not None and minutes <= 0:
        raise RequestError("must be above 0.", field="minutes", value=minutes)
    shared = int(shared) if str(shared).isdecimal() else shared
    return Request(str(model), data, validation, domain_column, text, by_folder, minutes, experts, top_k, shared, seed)


def _specialisation(out: Path, fitted: Fitted) -> Specialisation:
    return Specialisation(
        out, tuple({**asdict(choice), "keys": [*choice.keys]} for choice in fitted.choices), fitted.costs, fitted.notes
    )


def _remove_other_stages(out: Path, names: Collection[str]) -> None:
    """Remove the stages of an earlier recipe that this one does not have.

    Raises:
        OutputError: one of their folders holds a file that no stage wrote.
    """
    from smolmoe.core.contents import check_no_others, remove
    from smolmoe.pipeline.fitting import NAME
    from smolmoe.pipeline.stages import STAGES
    from smolmoe.recipe import parse
    from smolmoe.recipe.pipeline import PipelineRecipe

    shipped = parse(PipelineRecipe, {**load(NAME), "out": str(out)})
    for stage in shipped.stages:
        record = out / RECORDS / f"{stage.name}.json"
        if stage.name not in names and record.is_file():
            check_no_others(out / stage.name, *STAGES[stage.kind].writes(), field="out", value=str(out))
            remove(out, stage.name)
            record.unlink()


def _known(out: Path) -> Specialisation:
    """What an earlier run chose."""
    from smolmoe.core.json_text import read_object
    from smolmoe.pipeline.fitting import Cost

    known = read_object(out / CHOICES, fix="Start over with `overwrite=True`.")
    costs = tuple(Cost(**cost) for cost in known["forecast"]["stages"])
    return Specialisation(out, tuple(known["choices"]), costs, tuple(known["notes"]))


def _write(out: Path, request: Request, fitted: Fitted, found: Specialisation) -> None:
    write_text(out / CHOICES, json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")
    write_text(out / RECIPE, commented(request, fitted, f"smolmoe run {out / RECIPE}"))


def commented(request: Request, fitted: Fitted, command: str) -> str:
    """The recipe with comments."""
    from smolmoe.pipeline.recipe_text import recipe_text

    title = (
        f"{request.model}: an expert for each of {', '.join(fitted.domains)}" if fitted.domains else request.model,
        "",
        f"Edit it, and run it with `{command}`. Finished stages are not run again.",
    )
    return recipe_text(fitted.values, title=title, why=fitted.why)


def found_lines(found: Specialisation) -> list[str]:
    """The choices and the forecast, a line each, for a log."""
    width = max(len(choice["name"]) for choice in found.choices)
    shown = max(len(choice["shown"]) for choice in found.choices if len(choice["shown"]) <= 40)
    lines = [f"  {one['name']:<{width}}  {one['shown']:<{shown}}  {one['why']}" for one in found.choices]
    return [*lines, f"  about {units.duration(found.seconds)} in all", *(f"note: {note}" for note in found.notes)]


def init(
    model: Annotated[str | Path | None, Field(description="folder or hub id of a dense model")] = None,
    data: Data = (),
    out: Annotated[str | Path, Field(description="output file")] = Path("recipe.yaml"),
    *,
    goal: Annotated[str, Field(description="what it does: specialise, grow or continue")] = "specialise",
    validation: Validation = (),
    domain_column: DomainColumn = "domain",
    text: TextColumn = "text",
    by_folder: ByFolder = False,
    hours: Hours = None,
    minutes: Minutes = None,
    experts: Experts = None,
    top_k: TopK = None,
    shared: SharedExpert = "none",
    seed: Seed = 0,
    report: Progress | None = None,
) -> Path:
    """Write a commented recipe for your model and text.

    Values are chosen as `specialise` does. Without a model and a text they are those of the shipped recipe.

    Raises:
        OutputError: the file exists, or its folder does not.
        SmolmoeError: as `specialise`.
    """
    from smolmoe.pipeline.goals import write_recipe

    request = None
    if model is not None and data:
        request = _request(
            model, data, validation, domain_column, text, by_folder, hours, minutes, experts, top_k, shared, seed
        )
    elif model is not None or data:
        missing = "data" if model is not None else "model"
        fix = "Give both, or none for the shipped recipe's values."
        raise RequestError("is missing: sizes follow from the model and the text.", field=missing, value="", fix=fix)
    return write_recipe(request, place(Path(out), "file"), goal, report)
