"""The shipped pipeline `specialise-model`, fitted to a model, a text and this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core import units
from smolmoe.core.progress import Progress, silent
from smolmoe.data.survey import Survey
from smolmoe.errors import RequestError
from smolmoe.pipeline.own_text import Named, look, sources_of
from smolmoe.pipeline.sizes import EVALUATIONS, Choice, Schedule, Shape, choose_schedule, choose_shape
from smolmoe.pipeline.subject import Machine, Subject, study, this_machine
from smolmoe.recipe import UpcycleRecipe, parse
from smolmoe.recipe.files import change, load
from smolmoe.surgery.plan import NO_ROUTER_GRADIENT
from smolmoe.training.estimate import PROCESS_BYTES, STATE_BYTES, WEIGHT_BYTES

NAME = "specialise-model"
EXPERTS = 8  # without domains
LEFT_OUT = ("before", "routers", "probe")  # without domains
CHECKPOINT_BYTES = 12  # per parameter: the weight and both moments
SAVED_EVERY = 600  # seconds
BALANCED = {"load_balance": 0.01, "z_loss": 0.001}
PURPOSES = {
    "text": "your documents, once each, in the files train.jsonl and validation.jsonl",
    "moe": "the conversion: experts that are copies, so that the MoE is the dense model, verified on its files",
    "before": "what the routers do before they are trained",
    "routers": "first the routers alone learn the domains",
    "experts": "then everything learns",
    "dense": "the baseline: the dense model on the same text in the same order",
    "probe": "what the experts do: routing by domain, experts forced and removed",
    "compare": "all models on the held-out text",
    "report": "the held-out losses of both trainings",
    "page": "one page on all of it",
}


@dataclass(frozen=True)
class Request:
    """What a user asks for; see `specialise`."""

    model: str
    data: Named
    validation: Named
    domain_column: str
    text: str
    by_folder: bool
    minutes: float | None
    experts: int | None
    top_k: int | None
    shared: str | int
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {name: value if value is None else _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        tokens, steps: of a training, else 0.
        memory, disk: bytes; the disk that its output takes.
    """

    stage: str
    what: str
    tokens: int
    steps: int
    seconds: float
    memory: int
    disk: int


@dataclass(frozen=True)
class Fitted:
    """A pipeline for one model and one text.

    Attributes:
        values: of the recipe.
        choices: with their reasons.
        costs: by stage.
        notes: what the user should know first.
    """

    values: dict[str, Any]
    choices: tuple[Choice, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    domains: tuple[str, ...]

    @property
    def why(self) -> dict[str, str]:
        """Comments of the recipe: by stage its purpose, and by key the reason of its value."""
        purposes = {f"stages.{name}": text for name, text in PURPOSES.items()}
        return purposes | {key: one.why for one in self.choices for key in one.keys}


def fit(request: Request, out: Path, *, report: Progress | None = None) -> Fitted:
    """Choose the sizes of a specialisation. The text is read once, and the model is timed for a few seconds.

    Raises:
        RequestError: too few experts, or the machine has too little memory or disk.
        DataError: the text cannot be used.
        SourceError: no such model, or it has no tokenizer.
    """
    from smolmoe.moe.loading import find_tokenizer
    from smolmoe.training.rate import measure_rate

    report = report or silent
    first = study(parse(UpcycleRecipe, {"source": request.model, "out": out / "moe", "experts": 2, "top_k": 1}))
    tokenizer = find_tokenizer(str(first.folder))
    options = {"text": request.text, "domain_column": request.domain_column, "by_folder": request.by_folder}
    defaults = {"text": "text", "domain_column": "domain", "by_folder": False}
    options = {key: value for key, value in options.items() if value != defaults[key]}
    sources = sources_of(request.data, options)
    validation = sources_of(request.validation, options) if request.validation else []
    sources, validation, text = look(sources, validation, tokenizer, request.model, report)
    named = _is_named(text)
    conversion = _conversion(request, text, named)
    shape_only = {key: value for key, value in conversion.items() if not key.startswith("router")}
    subject = study(parse(UpcycleRecipe, {**shape_only, "out": out / "moe"}))
    machine = this_machine(out)
    shape = choose_shape(subject, text, machine)
    report("Timing this machine", 0, 0)
    rate = measure_rate(
        subject.folder,
        length=shape.length,
        batch=shape.batch,
        device=machine.device,
        bf16=machine.bf16,
        attention=shape.attention,
    )
    schedule = choose_schedule(subject, text, machine, shape, rate, request.minutes, named)
    values = load(NAME)
    change(values, {"out": str(out), **_text_changes(sources, validation, text.share)})
    change(values, _changes(request, conversion, text, shape, schedule, machine))
    if not named:
        _without_domains(values)
    costs = _costs(subject, text, shape, schedule, named)
    _check_disk(costs, machine, out)
    first_choices = _text_choices(text, subject, named, bool(validation))
    notes = (*_text_notes(text, named, sources), *_of_the_conversion(subject, named), *schedule.warnings)
    return Fitted(values, (*first_choices, *shape.choices, *schedule.choices), costs, notes, text.names)


def _is_named(text: Survey) -> bool:
    """Whether the documents have domains to name experts by.

    Raises:
        RequestError: only some have.
    """
    if text.names and "" in text.domains:
        raise RequestError(
            f"{text.domains[''].documents} documents have no domain; others have ({', '.join(text.names)}).",
            field="data",
            value="untagged",
            fix="Tag them, or name their file: NAME=PATH.",
        )
    return len(text.names) >= 2


def _conversion(request: Request, text: Survey, named: bool) -> dict[str, Any]:
    """Options of the upcycling.

    Raises:
        RequestError: fewer experts than domains.
    """
    count = len(text.names)
    if named and request.experts is not None and request.experts < count:
        raise RequestError(
            f"there are {count} domains ({', '.join(text.names)}), and each needs an expert.",
            field="experts",
            value=request.experts,
            fix=f"Use at least {count}, or give fewer domains.",
        )
    values = {
        "source": request.model,
        "experts": request.experts or (count if named else EXPERTS),
        "top_k": request.top_k or (1 if named else 2),
        "router": "domains",
        "router_data": "{text}/train.jsonl",
        "seed": request.seed,
    }
    values |= {} if request.shared == "none" else {"shared": request.shared}
    return values if named else values | {"router_centroids": "kmeans"}


def _text_changes(sources: Sequence[Any], validation: Sequence[Any], share: float) -> dict[str, Any]:
    """The text stage: its sources, and what is held out."""
    if validation:
        return {"stages.text.corpus": {"sources": list(sources), "validation_sources": list(validation)}}
    return {"stages.text.corpus": {"sources": list(sources), "validation": share}}


def _changes(
    request: Request, conversion: dict[str, Any], text: Survey, shape: Shape, schedule: Schedule, machine: Machine
) -> dict[str, Any]:
    """The shipped recipe's values for this model, text and machine."""
    experts = conversion["experts"]
    names = {
        name: [expert for expert in range(experts) if expert % len(text.names) == at]
        for at, name in enumerate(text.names)
    }
    measured = schedule.tokens
    changes: dict[str, Any] = {
        "defaults.seed": request.seed,
        "defaults.data.seed": request.seed,
        "defaults.data.length": shape.length,
        "defaults.evaluation": {"tokens": measured["evaluation"]},
        "defaults.trainer.per_device_train_batch_size": min(shape.batch, schedule.blocks),
        "defaults.trainer.gradient_accumulation_steps": max(1, schedule.blocks // shape.batch),
        "defaults.trainer.optim": shape.optimizer,
        "defaults.trainer.bf16": machine.bf16,
        "source": request.model,
        "stages.moe.upcycle": {**conversion, "source": "{source}"},
        "stages.routers.train.guidance.experts": names,
        "stages.compare.compare.tokens": measured["compare"],
        "stages.compare.compare.length": shape.length,
        "stages.probe.probe.dense": "{source}",
    }
    if shape.attention is not None:
        changes["defaults.model"] = {"attention": shape.attention}
    if experts > len(text.names):
        changes["stages.experts.train.objective"] = {"load_balance": BALANCED["load_balance"]}
    router_batch = min(shape.batch, schedule.router_blocks)
    router_trainer = {
        "per_device_train_batch_size": router_batch,
        "gradient_accumulation_steps": max(1, schedule.router_blocks // router_batch),
        "learning_rate": 1e-2,
        "warmup_steps": max(1, schedule.router_steps // 20),
    }
    joint_trainer = {"learning_rate": schedule.rate, "warmup_steps": max(1, schedule.steps // 9)}
    for stage, steps, seconds, own in (
        ("routers", schedule.router_steps, schedule.seconds["routers"], router_trainer),
        ("experts", schedule.steps, schedule.seconds["joint"], joint_trainer),
        ("dense", schedule.steps, schedule.seconds["dense"], joint_trainer),
    ):
        saved = min(steps, max(1, int(SAVED_EVERY / seconds)))
        changes[f"stages.{stage}.train.trainer"] = {"max_steps": steps, **own, "save_steps": max(1, saved)}
        changes[f"stages.{stage}.train.evaluation"] = {"every": max(1, steps // EVALUATIONS)}
    for stage in ("before", "probe"):
        changes[f"stages.{stage}.probe.tokens"] = measured.get("probe", 0)
        changes[f"stages.{stage}.probe.probe_tokens"] = min(2048, max(256, measured.get("probe", 0)))
    changes["stages.probe.probe.loss_tokens"] = measured.get("losses", 0)
    return changes


def _without_domains(values: dict[str, Any]) -> None:
    """Experts without names: no training of routers, no guidance, a balanced load, and nothing to probe by."""
    values["stages"] = [stage for stage in values["stages"] if stage["name"] not in LEFT_OUT]
    stages = {stage["name"]: stage for stage in values["stages"]}
    experts = stages["experts"]["train"]
    experts["model"] = {"path": "{moe}"}
    for key in ("guidance", "routing"):
        experts.pop(key)
    experts["objective"] = dict(BALANCED)
    for name in ("experts", "dense"):
        stages[name]["train"].pop("data")
    stages["compare"]["compare"].pop("by")


def _text_choices(text: Survey, subject: Subject, named: bool, own: bool) -> tuple[Choice, ...]:
    parts = [f"{name} {units.count(one.documents)}" for name, one in text.domains.items() if name]
    shown = f"{units.count(text.documents)} documents" + (f": {', '.join(parts)}" if named else "")
    held = "your validation text" if own else f"{text.share:.0%} of them, by a hash of the text"
    repeated = f"; {text.repeated:,} repeated texts are left out" if text.repeated else ""
    why = "one for each domain" if named and subject.experts == len(text.names) else "without domains, 8 that balance"
    if subject.experts not in (EXPERTS, len(text.names)) or (named and subject.experts != len(text.names)):
        why = "as asked"
    return (
        Choice("text", shown, f"{units.tokens(text.tokens)} tokens to train on{repeated}"),
        Choice(
            "held out",
            held,
            "the smallest share with ten documents of each domain" if not own else "as given",
            () if own else ("stages.text.corpus.validation",),
        ),
        Choice("experts", str(subject.experts), why, ("stages.moe.upcycle.experts",)),
        Choice(
            "MoE",
            f"{units.model_size(subject.total, subject.active)}",
            f"{subject.model_class}; the dense model has {units.parameters(subject.dense)}",
        ),
    )


def _text_notes(text: Survey, named: bool, sources: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    if named:
        return ()
    one = f" (all are {text.names[0]!r})" if text.names else ""
    return (
        f"The documents have no different domains{one}: the experts get no names. Routers begin at k-means "
        "clusters of the text; what the experts come to do is left to training, so there is no routing accuracy. "
        "For an expert per domain, tag the rows with a column, name the files (code=DIR, chat=FILE), or have the "
        "subfolders as domains.",
    )


def _of_the_conversion(subject: Subject, named: bool) -> tuple[str, ...]:
    """What to know of the conversion; that only guidance teaches top-1 routers is no news where there is guidance."""
    return tuple(warning for warning in subject.warnings if not (named and warning == NO_ROUTER_GRADIENT))


def _costs(subject: Subject, text: Survey, shape: Shape, schedule: Schedule, named: bool) -> tuple[Cost, ...]:
    """By stage, in the order of the pipeline."""
    each, measuring = schedule.seconds, schedule.seconds["measuring"]
    characters = sum(domain.characters for domain in text.domains.values())
    moe, dense = subject.total, subject.dense
    dense_memory = int(shape.memory * dense / moe)
    costs = [
        Cost("text", "reading, splitting", 0, 0, characters / 20e6, PROCESS_BYTES, int(1.1 * characters)),
        Cost("moe", "converting, verifying", 0, 0, 0.15 * measuring, PROCESS_BYTES + 4 * dense, subject.nbytes),
    ]

    def training(stage: str, what: str, steps: int, blocks: int, seconds: float, size: int, memory: int) -> None:
        states = WEIGHT_BYTES if stage == "routers" else CHECKPOINT_BYTES
        disk = size * (2 * WEIGHT_BYTES + states)
        costs.append(Cost(stage, what, steps * blocks * shape.length, steps, steps * seconds, memory, disk))

    if named:
        costs.append(Cost("before", "probing", 0, 0, 0.1 * measuring, PROCESS_BYTES + 5 * moe, 0))
        router = shape.memory - (STATE_BYTES[shape.optimizer.partition("_")[0]] - WEIGHT_BYTES) * moe
        training("routers", "training", schedule.router_steps, schedule.router_blocks, each["routers"], moe, router)
    training("experts", "training", schedule.steps, schedule.blocks, each["joint"], moe, shape.memory)
    training("dense", "training", schedule.steps, schedule.blocks, each["dense"], dense, dense_memory)
    if named:
        costs.append(Cost("probe", "probing", 0, 0, 0.45 * measuring, PROCESS_BYTES + 5 * moe, 0))
    costs.append(Cost("compare", "comparing", 0, 0, (0.3 if named else 0.85) * measuring, PROCESS_BYTES + 5 * moe, 0))
    costs += [Cost(stage, "drawing", 0, 0, 3.0, 0, 1_000_000) for stage in ("report", "page")]
    return tuple(costs)


def _check_disk(costs: Sequence[Cost], machine: Machine, out: Path) -> None:
    """Raises RequestError if the output does not fit."""
    needed = sum(cost.disk for cost in costs)
    if needed > machine.disk:
        raise RequestError(
            f"the output takes about {units.size(needed)}, and {units.size(machine.disk)} are free there.",
            field="out",
            value=str(out),
            fix="Free some space, or name a folder on another disk.",
        )
