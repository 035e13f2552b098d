"""One training run in one folder: from scratch, from a checkpoint, or on from where it stopped."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.errors import OutputError, RequestError
from smolmoe.files import write_json
from smolmoe.recipe import TrainRecipe, parse

if TYPE_CHECKING:
    from smolmoe.data.corpus import TokenCorpus
    from smolmoe.evaluate.held_out import HeldOut
    from smolmoe.train.estimate import Estimate
    from smolmoe.train.trainer import MoeTrainer

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
RUN = "run.json"  # what was asked, and of which data: a resumed run must agree
RECIPE = "recipe.yaml"
MODEL = "model"
TOKENIZER = "tokenizer"
SUMMARY = "summary.json"
HELD_OUT = "held_out.json"  # the final losses, document by document
FLIP_BLOCKS = 4  # training blocks on which routing in fp32 is compared with routing as served
TOKENIZER_CHARACTERS = 50_000_000  # more text makes no better tokenizer
BLOCKS = "sequences of a step, over all processes"
MEASUREMENTS = 10  # held-out measurements of a run whose recipe does not say
# What a resumed run may ask differently: it changes how long or how closely watched the run is, not what it does.
_CHANGEABLE = (
    "out",
    "device",
    "evaluation.",
    "samples.",
    *(
        f"trainer.{name}"
        for name in ("max_steps", "num_train_epochs", "save_", "logging_", "report_to", "run_name", "project", "log_")
    ),
    "trainer.disable_tqdm",
    "trainer.dataloader_",
    # Other processes may go on, as long as the sequences of a step stay as many.
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.ddp_",
    "parallel",
    "data.cache",
)
# A folder may have been moved: the text's and the tokenizer's hash is compared, and the model is in the checkpoint.
_PLACES = (".path", "tokenizer", "carry.optimizer")
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run wrote.

    Attributes:
        out: the run folder: `model/`, `checkpoints/`, `metrics.jsonl`, `recipe.yaml`, `summary.json`.
        summary: as in `summary.json`.
    """

    out: Path
    summary: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.out / MODEL

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.summary}


def train(
    recipe: TrainRecipe | dict[str, Any],
    *,
    resume: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> TrainResult:
    """Train one model and write it, with what was measured on the way, into one folder.

    Args:
        recipe: what to train on what; a dict is parsed.
        resume: latest, best, or a checkpoint's folder, to go on from there.
        overwrite: start over where the folder holds a run.
        report: called as the work goes on.

    Raises:
        SmolmoeError: a subclass that names what is wrong. After TrainingError and OutputError the last whole checkpoint
            can be resumed from.
    """
    if isinstance(recipe, dict):
        recipe = parse(TrainRecipe, recipe)
    return _Run(recipe, resume, overwrite, report or (lambda stage, done, total: None)).go()


class _Run:
    """The parts of a run, made one after the other."""

    def __init__(self, recipe: TrainRecipe, resume: str | None, overwrite: bool, report: Report):
        from smolmoe.train.distributed import join, on_main
        from smolmoe.train.metrics import is_main_process

        self.recipe = recipe
        self.report = report
        self.writes = is_main_process()
        join(recipe)
        self.checkpoint = on_main(lambda: self._open_folder(resume, overwrite))

    def go(self) -> TrainResult:
        from smolmoe.train.arguments import check_trainer_keys
        from smolmoe.train.distributed import build_once, in_turn, on_main
        from smolmoe.train.metrics import FILE, MetricsFile
        from smolmoe.train.models import build_model, find_tokenizer, model_folder, parent_provenance

        recipe = self.recipe
        check_trainer_keys(recipe.trainer)
        self.source = in_turn(lambda: model_folder(recipe.model))
        self.provenance = parent_provenance(self.source)
        self.report("Reading the model", 0, 0)
        self.tokenizer = on_main(lambda: self._tokenizer(find_tokenizer))
        build = build_once if recipe.parallel == "fsdp" else in_turn
        self.model = build(lambda: build_model(recipe, self.tokenizer, self.checkpoint or self.source))
        self.report("Tokenising", 0, 0)
        corpus = in_turn(self._corpus)
        held_out = self._held_out(corpus)
        steps = self._steps(corpus)
        self.carried = self._carried()
        on_main(lambda: self._begin(corpus))
        start = _step(self.checkpoint)
        metrics = MetricsFile(recipe.out / FILE, after=start, write=self.writes)
        trainer = self._trainer(corpus, held_out, steps, metrics)
        self._train(trainer)
        return self._finish(trainer, corpus, held_out, steps)

    # -- the folder ----------------------------------------------------------------------------------------------

    def _open_folder(self, resume: str | None, overwrite: bool) -> Path | None:
        """Make sure that the run may write there; returns the checkpoint to resume from."""
        from smolmoe.train.checkpoints import find_checkpoint, whole_checkpoints

        out = self.recipe.out
        if resume is not None:
            return find_checkpoint(out, resume)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not (out / RUN).is_file():
                raise OutputError(
                    f"there is something else than a run (no {RUN} in it).",
                    field="out",
                    value=str(out),
                    fix="Name a new folder.",
                )
            if not overwrite and ((out / SUMMARY).is_file() or whole_checkpoints(out)):
                state = "finished" if (out / SUMMARY).is_file() else "unfinished"
                raise OutputError(
                    f"the folder holds a run ({state}).",
                    field="out",
                    value=str(out),
                    fix="Go on with --resume latest, start over with --overwrite, or name another folder with "
                    "--set out=...",
                )
            shutil.rmtree(out)
        return None

    def _begin(self, corpus: TokenCorpus) -> None:
        """Write down what is asked; of a resumed run, see that it is the same."""
        import yaml

        from smolmoe.train.arguments import DEFAULTS

        out = self.recipe.out
        asked = self.recipe.model_dump(mode="json")
        asked["trainer"] = {**DEFAULTS, **asked["trainer"]}
        record = {
            "schema_version": SCHEMA_VERSION,
            "recipe": asked,
            "data": corpus.fingerprint,
            "blocks_a_step": self._blocks_a_step(),
        }
        if self.checkpoint is not None and (out / RUN).is_file():
            _check_same(json.loads((out / RUN).read_text(encoding="utf-8")), record, out)
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY).unlink(missing_ok=True)
        self.tokenizer.save_pretrained(out / TOKENIZER)
        write_json(out / RUN, record)
        text = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True)
        (out / RECIPE).write_text(text, encoding="utf-8")

    # -- text ----------------------------------------------------------------------------------------------------

    def _tokenizer(self, find: Callable[[TrainRecipe, Path | None], Any]) -> Any:
        from smolmoe.moe.loading import load_tokenizer

        if self.checkpoint is not None and (self.recipe.out / TOKENIZER).is_dir():
            return load_tokenizer(self.recipe.out / TOKENIZER)
        if isinstance(self.recipe.tokenizer, int):
            return self._learn_tokenizer(self.recipe.tokenizer)
        return find(self.recipe, self.source)

    def _learn_tokenizer(self, vocabulary: int) -> Any:
        from smolmoe.data.embedded import is_held_out
        from smolmoe.data.sources import open_source
        from smolmoe.data.tokenizer import train_tokenizer

        data = self.recipe.data
        documents, characters = [], 0
        for document in chain.from_iterable(open_source(source).documents() for source in data.sources):
            if not data.validation and is_held_out(document.text, data.held_out):
                continue
            documents.append(document)
            characters += len(document.text)
            if characters > TOKENIZER_CHARACTERS:
                break
        name = "Learning a tokenizer"
        return train_tokenizer(documents, vocabulary, report=lambda done, total: self.report(name, done, total))

    def _corpus(self) -> TokenCorpus:
        from smolmoe.data.corpus import load_corpus

        steps = int(self.recipe.trainer.get("max_steps", -1))
        blocks = self.recipe.data.skip + steps * self._blocks_a_step()
        tokens = blocks * self.recipe.data.length if steps > 0 else None
        return load_corpus(self.recipe.data, self.tokenizer, tokens=tokens, report=self.report)

    def _held_out(self, corpus: TokenCorpus) -> HeldOut:
        from smolmoe.evaluate.held_out import cut_windows

        evaluation, store = self.recipe.evaluation, corpus.validation
        return cut_windows(
            [store.document(i).tolist() for i in range(len(store))],
            [corpus.domains[i] for i in store.domain_ids],
            length=self.recipe.data.length,
            start=self.tokenizer.eos_token_id,
            budget=evaluation.tokens,
            per_document=evaluation.per_document,
        )

    def _blocks_a_step(self) -> int:
        return blocks_a_step(self.recipe)

    def _steps(self, corpus: TokenCorpus) -> int:
        trainer = self.recipe.trainer
        steps = int(trainer.get("max_steps", -1))
        if steps < 0:
            tokens = float(trainer.get("num_train_epochs", 1)) * len(corpus.train.ids)
            steps = int(tokens // (self._blocks_a_step() * self.recipe.data.length))
        if steps < 1:
            raise RequestError(
                "the text does not fill one step.",
                field="trainer.max_steps",
                value=steps,
                fix="Give more text, a smaller batch, or shorter blocks.",
            )
        return steps

    # -- training ------------------------------------------------------------------------------------------------

    def _trainer(self, corpus: TokenCorpus, held_out: HeldOut, steps: int, metrics: Any) -> MoeTrainer:
        from safetensors.torch import load_file

        from smolmoe.evaluate.held_out import document_losses
        from smolmoe.moe.control import load_state
        from smolmoe.train.arguments import training_arguments
        from smolmoe.train.checkpoints import TRAINING_STATE
        from smolmoe.train.distributed import shard
        from smolmoe.train.objective import Objective
        from smolmoe.train.trainer import MoeTrainer

        recipe = self.recipe
        every = recipe.evaluation.every or max(1, steps // MEASUREMENTS)
        arguments = training_arguments(recipe, recipe.out, steps=steps, every=every)
        if arguments.ddp_find_unused_parameters is None:  # every parameter is used: stacked experts, idle ones too
            arguments.ddp_find_unused_parameters = False
        granularity = int(self.provenance.get("layout", {}).get("granularity", 1))
        moments, scales = self.carried
        objective = Objective(self.model, recipe.objective, recipe.routing, granularity)
        if self.checkpoint is not None and (self.checkpoint / TRAINING_STATE).is_file():
            load_state(self.model, load_file(self.checkpoint / TRAINING_STATE))
        if recipe.parallel == "fsdp" and arguments.world_size > 1:
            shard(self.model, arguments.device.type, bf16=arguments.bf16)
        return MoeTrainer(
            recipe=recipe,
            objective=objective,
            metrics=metrics,
            measure=lambda model, capture: document_losses(model, held_out, capture=capture),
            measured_at={*recipe.evaluation.at, *range(every, steps, every), 0, steps},
            moments=moments if self.checkpoint is None else None,  # a checkpoint has the state itself
            carried=set(moments),
            scales=scales,
            on_step=lambda done, total: self.report("Training", done, total),
            model=self.model,
            args=arguments,
            processing_class=self.tokenizer,
            train_dataset=self._blocks(corpus, steps * self._blocks_a_step()),
        )

    def _blocks(self, corpus: TokenCorpus, count: int) -> Any:
        """The run's blocks, in their order."""
        from torch.utils.data import Subset

        from smolmoe.data.blocks import Blocks

        data = self.recipe.data
        weights = [source.weight for source in data.sources]
        blocks = Blocks(
            corpus.train,
            count=data.skip + count,
            length=data.length,
            seed=data.seed,
            weights=None if weights[0] is None else [float(weight) for weight in weights if weight],
            isolate=data.isolate,
        )
        return Subset(blocks, range(data.skip, data.skip + count))

    def _carried(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Adam moments of the dense source by the MoE's parameters, and learning-rate factors of scaled tensors."""
        carry = self.recipe.carry
        if carry is None:
            return {}, {}
        from smolmoe.surgery.moments import Moments, carry_moments, learning_rate_scales, plan_of
        from smolmoe.train.checkpoints import read_adam

        if self.source is None:
            raise RequestError(
                "there is nothing to carry to a new model.", field="carry", value=carry.optimizer, fix="Leave it out."
            )
        dense = {
            name: Moments(state["exp_avg"].float(), state["exp_avg_sq"].float(), float(state["step"]))
            for name, state in read_adam(Path(carry.optimizer)).items()
        }
        if self.provenance.get("stage") != "upcycle":  # the model that was trained itself
            return dense, {}
        plan = plan_of(self.source)
        return carry_moments(plan, dense, experts=carry.experts), learning_rate_scales(plan)

    def _train(self, trainer: MoeTrainer) -> None:
        from smolmoe.train.objective import NotFiniteError

        self.report("Training", _step(self.checkpoint), trainer.args.max_steps)
        try:
            trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        except NotFiniteError:
            # The step was not taken, so the weights are those of the last good one. All ranks come here together.
            if trainer.state.global_step:
                trainer._save_checkpoint(trainer.model)
            raise
        trainer.flush()

    # -- what is left --------------------------------------------------------------------------------------------

    def _finish(self, trainer: MoeTrainer, corpus: TokenCorpus, held_out: HeldOut, steps: int) -> TrainResult:
        from smolmoe.train.checkpoints import room_for
        from smolmoe.train.distributed import on_main
        from smolmoe.train.estimate import size_of

        out = self.recipe.out
        self.report("Writing the model", 0, 0)
        with room_for("the model", out):
            self._write_model(trainer)
        # A run that was killed between its last checkpoint and here has measured that step already.
        last = trainer.last_held_out or trainer.measure(self.model, None)
        summary: dict[str, Any] = {
            "steps": steps,
            "tokens": steps * self._blocks_a_step() * self.recipe.data.length,
            "flops": self._flops(steps),
            "parameters": size_of(self.model).to_json(),
            "held_out": {**last.to_json(), "documents": len(last.tokens)},
            "train_seconds": round(trainer.clock.seconds, 2),
            **self._flips(corpus),
            "data": corpus.summary(),
        }

        def write() -> dict[str, Any]:
            summary["samples"] = self._samples()
            write_json(out / HELD_OUT, last.documents_json())
            write_json(out / SUMMARY, summary)
            return summary

        return TrainResult(out, on_main(write))

    def _flips(self, corpus: TokenCorpus) -> dict[str, float]:
        """Of routers trained in fp32: the share of tokens for which bf16, as it is served, chooses other experts."""
        if not self.recipe.routing.fp32:
            return {}
        import torch

        from smolmoe.moe.control import measure_flips

        blocks, device = self._blocks(corpus, FLIP_BLOCKS), self.model.device
        batches = [{"input_ids": blocks[i]["input_ids"][None].to(device)} for i in range(FLIP_BLOCKS)]
        with torch.autocast(device.type, torch.bfloat16):
            return {"router_flips": measure_flips(self.model, batches)}

    def _flops(self, steps: int) -> float:
        from smolmoe.train.estimate import size_of

        length = self.recipe.data.length
        return steps * self._blocks_a_step() * length * size_of(self.model).flops_per_token(length)

    def _write_model(self, trainer: MoeTrainer) -> None:
        partial = self.recipe.out / f".{MODEL}.partial"
        if self.writes:
            shutil.rmtree(partial, ignore_errors=True)
        trainer.write_model(partial)
        if self.writes:
            write_json(partial / "smolmoe.json", self._provenance())
            shutil.rmtree(self.recipe.out / MODEL, ignore_errors=True)
            partial.rename(self.recipe.out / MODEL)

    def _provenance(self) -> dict[str, Any]:
        from smolmoe.surgery.convert import versions
        from smolmoe.train.models import source_of

        return {
            "schema_version": SCHEMA_VERSION,
            "stage": "train",
            "request": self.recipe.model_dump(mode="json", exclude={"out"}),
            "source": source_of(self.source),
            **{key: self.provenance[key] for key in ("target", "layout") if key in self.provenance},
            "seed": self.recipe.seed,
            "versions": versions(),
            "command": " ".join(["smolmoe", *sys.argv[1:]]) if Path(sys.argv[0]).name.startswith("smolmoe") else None,
        }

    def _samples(self) -> list[dict[str, str]]:
        from smolmoe.generation import generate

        samples = self.recipe.samples
        found = []
        for prompt in samples.prompts:
            self.report("Writing samples", 0, 0)
            result = generate(self.recipe.out / MODEL, prompt, max_new_tokens=samples.new_tokens, temperature=0.0)
            found.append({"prompt": prompt, "text": result.texts[0]})
        return found


def blocks_a_step(recipe: TrainRecipe) -> int:
    """Sequences of one optimiser step, over all processes and accumulated batches."""
    from smolmoe.train.arguments import DEFAULTS
    from smolmoe.train.distributed import world_size

    trainer = {**DEFAULTS, **recipe.trainer}
    accumulated = int(trainer.get("gradient_accumulation_steps", 1))
    return int(trainer["per_device_train_batch_size"]) * accumulated * world_size()


def estimate(recipe: TrainRecipe) -> Estimate:
    """What a run will cost, from configs and file headers: nothing is trained, no weight is read.

    Raises:
        SmolmoeError: as `train`, for what can be seen beforehand. The number of steps must be given.
    """
    from smolmoe.train import estimate as costs
    from smolmoe.train.arguments import DEFAULTS, check_trainer_keys, pick_device, precision

    check_trainer_keys(recipe.trainer)
    trainer = {**DEFAULTS, **recipe.trainer}
    device = pick_device(recipe.device)
    return costs.estimate(
        _skeleton(recipe),
        steps=int(trainer.get("max_steps", 0)),
        blocks_a_step=blocks_a_step(recipe),
        micro_batch=int(trainer["per_device_train_batch_size"]),
        length=recipe.data.length,
        optimizer=str(trainer["optim"]),
        device=device,
        bf16=bool(trainer.get("bf16", precision(device)["bf16"])),
    )


def steps_for_flops(recipe: TrainRecipe, flops: float) -> int:
    """How many steps of this run spend that many FLOPs."""
    from smolmoe.train.estimate import size_of

    length = recipe.data.length
    return max(1, round(flops / (size_of(_skeleton(recipe)).flops_per_token(length) * blocks_a_step(recipe) * length)))


def _skeleton(recipe: TrainRecipe) -> Any:
    """The recipe's model without its weights."""
    from accelerate import init_empty_weights

    from smolmoe.moe.loading import Skeleton, causal_lm_class
    from smolmoe.train.models import check_fit, find_tokenizer, model_folder, new_config

    folder = model_folder(recipe.model)
    if folder is not None:
        return Skeleton(folder).model
    tokenizer = range(recipe.tokenizer) if isinstance(recipe.tokenizer, int) else find_tokenizer(recipe, None)
    config = new_config(recipe.model, tokenizer, recipe.data.length)
    check_fit(config.get_text_config(), tokenizer, recipe.data.length)
    with init_empty_weights(include_buffers=False):
        return causal_lm_class(config)._from_config(config)


def _step(checkpoint: Path | None) -> int:
    from smolmoe.train.checkpoints import step_of

    return 0 if checkpoint is None else step_of(checkpoint)


def _check_same(found: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Refuse to resume a run as another one."""
    before, now = _flat(found["recipe"]), _flat(asked["recipe"])
    now[BLOCKS] = asked["blocks_a_step"]
    before[BLOCKS] = found.get("blocks_a_step", now[BLOCKS])
    changed = [
        key
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not key.startswith(_CHANGEABLE) and not key.endswith(_PLACES)
    ]
    if found["data"] != asked["data"] and not changed:
        raise OutputError(
            "the data is not what the run began with.",
            field="data",
            value=asked["data"],
            fix="Restore it, or start a new run in another folder.",
        )
    if changed:
        said = ", ".join(f"{key}: {before.get(key)} there, {now.get(key)} here" for key in changed)
        raise OutputError(
            f"the run there was begun with another recipe ({said}).",
            field="out",
            value=str(out),
            fix="Resume with the same recipe, or name another folder.",
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict | list):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
