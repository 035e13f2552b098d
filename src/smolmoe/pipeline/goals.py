"""`smolmoe init`: recipes for the usual goals, with comments, fitted if a model and a text are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from smolmoe.core.files import write_text
from smolmoe.core.progress import Progress
from smolmoe.errors import OutputError, RequestError
from smolmoe.pipeline.fitting import NAME, PURPOSES, Fitted, Request, fit
from smolmoe.pipeline.recipe_text import recipe_text
from smolmoe.pipeline.sizes import Choice
from smolmoe.recipe.files import COMMANDS, change, kind_of, load

# goal -> the shipped recipe
SHIPPED = {"specialise": NAME, "grow": "grow", "continue": None}


def write_recipe(request: Request | None, out: Path, goal: str, report: Progress | None) -> Path:
    """Write the recipe of a goal.

    Raises:
        RequestError: no such goal.
        OutputError: the file exists.
    """
    if goal not in SHIPPED:
        raise RequestError("no such goal.", field="goal", value=goal, fix=f"Goals: {', '.join(SHIPPED)}.")
    if out.exists():
        raise OutputError("exists already.", field="out", value=str(out), fix="Name another file.")
    folder = Path("runs") / out.stem
    fitted = None if request is None else fit(request, folder, report=report)
    values, why = _values(goal, request, fitted, folder)
    command = f"{COMMANDS[kind_of(values)]} {out}"
    about = {
        "specialise": "An expert for each domain",
        "grow": "An MoE and the dense model on the same tokens",
        "continue": "Training",
    }
    title = [
        f"{about[goal]}: {request.model if request else 'values as shipped; give `smolmoe init` a model and data'}"
    ]
    write_text(out, recipe_text(values, title=[*title, "", f"Edit it, and run it with `{command}`."], why=why))
    return out


def _values(
    goal: str, request: Request | None, fitted: Fitted | None, folder: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a goal's recipe, and why."""
    purposes = {f"stages.{name}": text for name, text in PURPOSES.items()} if goal == "specialise" else {}
    if fitted is None or request is None:
        values = load(SHIPPED[goal] or "grow") | {"out": str(folder)}
        return (values if SHIPPED[goal] else _training(values["stages"][-2]["train"], values, folder)), purposes
    if goal == "specialise":
        return fitted.values, fitted.why
    stages = {stage["name"]: stage for stage in fitted.values["stages"]}
    defaults, why = fitted.values["defaults"], _under(fitted)
    corpus = stages["text"]["corpus"]
    data = {
        "sources": corpus["sources"],
        **(
            {"validation": corpus["validation_sources"]}
            if "validation_sources" in corpus
            else {"held_out": corpus["validation"]}
        ),
        "length": defaults["data"]["length"],
        "seed": request.seed,
    }
    trainer = {**defaults["trainer"], **stages["dense"]["train"]["trainer"]}
    common = {
        **defaults,
        "data": data,
        "trainer": trainer,
        "evaluation": {**defaults["evaluation"], "every": stages["dense"]["train"]["evaluation"]["every"]},
    }
    if goal == "continue":
        model = {"path": request.model, **defaults.get("model", {})}
        return {"model": model, **{k: v for k, v in common.items() if k != "model"}, "out": str(folder)}, why[""]
    values = load("grow")
    schedule = {key: value for key, value in values["defaults"]["trainer"].items() if key.startswith("lr_scheduler")}
    asked: dict[str, Any] = {"experts": request.experts, "top_k": request.top_k, "seed": request.seed}
    asked |= {"shared": request.shared} if request.shared != "none" else {}
    change(
        values,
        {
            "defaults": common | {"trainer": trainer | schedule},
            "out": str(folder),
            "source": request.model,
            **{f"stages.moe.upcycle.{key}": value for key, value in asked.items() if value is not None},
        },
    )
    return values, why["defaults."]


def _under(fitted: Fitted) -> dict[str, dict[str, str]]:
    """The reasons of the joint training's values, under the keys of `defaults` and of a single training."""
    moved: list[Choice] = []
    for one in fitted.choices:
        keys = tuple(key.replace("stages.experts.train.", "defaults.") for key in one.keys)
        keys = tuple(key.replace("stages.text.corpus.validation", "defaults.data.held_out") for key in keys)
        moved.append(replace(one, keys=keys))
    why = {key: f"{one.shown}: {one.why}" for one in moved for key in one.keys}
    return {"defaults.": why, "": {key.removeprefix("defaults."): text for key, text in why.items()}}


def _training(train: dict[str, Any], values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One training of a shipped pipeline as a recipe."""
    return {**train, **values["defaults"], "model": {"path": values["source"]}, "out": str(folder)}
