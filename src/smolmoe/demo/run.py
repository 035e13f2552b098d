"""The whole way in one command, on text of this Python installation: train a small dense model, upcycle it, prove it,
train on, and report what happened to the loss across the boundary."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import growing, write_json, write_text
from smolmoe.core.run_folder import RunFolder
from smolmoe.demo.settings import PROMPTS, QuickstartSettings

if TYPE_CHECKING:
    from smolmoe.data.text import Document
    from smolmoe.evaluation.held_out import HeldOut
    from smolmoe.reports.boundary import BoundaryReport
    from smolmoe.surgery.run import Report

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
# What is in the folder, but for settings and records.
MADE = ("corpus", "tokenizer", "cache", "dense*", "moe*", "training", "metrics.jsonl", "boundary.png", "report.json")
TRAINING = "training"  # the folders of the single trainings, with all their measurements and last states
BALANCE_WEIGHT, Z_WEIGHT = 0.01, 0.001  # of the router terms (arXiv 2101.03961, 2202.08906)
ROUTER_WARMUP = 20  # steps: routers are new where the rest of the MoE goes on
TRIED = 8  # steps, to see how fast the machine is
LEAST = 1 / 3  # of the wanted steps: below that the model has learned too little to show anything
INTERIM = 3  # held-out measurements during each training, beside those of the written checkpoints
HELD_OUT_PER_DOCUMENT = 1024  # tokens: no long document decides for its domain
ATTENTION = "eager"  # on CPUs and at this length a third faster to train than the fused one
LOAD_TOKENS = 3000  # of each domain, to see which experts it goes to


@dataclass(frozen=True)
class QuickstartResult:
    """What the run found.

    Attributes:
        out: the run folder.
        verified: the written MoE does what the conversion claimed.
        boundary: the held-out losses.
        report: all of it, as in `report.json`.
    """

    out: Path
    verified: bool
    boundary: BoundaryReport
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.report

    def text(self) -> str:
        """The findings to read in a terminal."""
        from smolmoe.demo.summary import text

        return text(self.out, self.boundary, self.report)


def quickstart(
    out: str | Path = "runs/quickstart",
    *,
    seed: int = 0,
    overwrite: bool = False,
    settings: QuickstartSettings | None = None,
    report: Report | None = None,
) -> QuickstartResult:
    """Train a dense model, upcycle it, verify it, train on, and write the boundary report.

    Everything goes into one folder: `corpus/`, `tokenizer/`, the checkpoints `dense/`, `moe/`, `moe-trained/` and
    `dense-trained/`, `metrics.jsonl`, `boundary.png` and `report.json`. Finished stages are not done again.

    Args:
        out: the run folder.
        seed: of everything random; `settings` bring their own.
        overwrite: start over in a folder that holds a run.
        settings: other sizes.
        report: called as the work goes on.

    Raises:
        OutputError: `out` holds a run with other settings, or something else.
        VerificationError: the MoE's files do not do what was claimed.
    """
    settings = settings or QuickstartSettings(seed=seed)
    with growing(Path(out)):
        return _Quickstart(RunFolder(out, asdict(settings), made=MADE, overwrite=overwrite), settings, report).run()


class _Quickstart:
    """The stages, in order. Each reads what earlier ones wrote to the folder and returns its record, as plain data."""

    def __init__(self, folder: RunFolder, settings: QuickstartSettings, report: Report | None):
        self.folder = folder
        self.path = folder.path
        self.settings = settings
        self.report = report or (lambda stage, done, total: None)
        self.records: dict[str, dict[str, Any]] = {}

    def run(self) -> QuickstartResult:
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "corpus": self.make_corpus,
            "tokenizer": self.make_tokenizer,
            "dense": self.train_dense,
            "upcycle": self.upcycle,
            "doctor": self.doctor,
            "moe": lambda: self.measure("moe"),
            "moe-trained": self.train_moe,
        }
        if self.settings.compare:
            stages["dense-trained"] = self.train_dense_on
        stages["samples"] = self.samples
        for name, make in stages.items():
            self.records[name] = self.folder.stage(name, make)
            logger.info("%s: %.1f s", name, self.records[name]["wall_seconds"])
        return self.finish()

    # -- text

    def make_corpus(self) -> dict[str, Any]:
        from smolmoe.data.embedded import DOMAINS, embedded_corpus
        from smolmoe.data.text import write_documents

        self.report("Collecting text", 0, 0)
        corpus = embedded_corpus(seed=self.settings.seed, megabytes=self.settings.megabytes)
        record = {}
        with self.folder.folder("corpus") as folder:
            for side, documents in (("train", corpus.train), ("validation", corpus.validation)):
                write_documents(folder / f"{side}.jsonl", documents)
                texts = {domain: [d.text for d in documents if d.domain == domain] for domain in DOMAINS}
                record[side] = {
                    domain: {"documents": len(found), "characters": sum(map(len, found))}
                    for domain, found in texts.items()
                }
        return record

    def documents(self, side: str) -> list[Document]:
        from smolmoe.data.text import read_documents

        return read_documents(self.path / "corpus" / f"{side}.jsonl")

    def make_tokenizer(self) -> dict[str, Any]:
        from smolmoe.data.tokenizer import train_tokenizer

        name = "Learning a tokenizer"
        self.report(name, 0, 0)
        documents = self.documents("train")
        tokenizer = train_tokenizer(
            documents, self.settings.vocabulary, report=lambda done, total: self.report(name, done, total)
        )
        with self.folder.folder("tokenizer") as folder:
            tokenizer.save_pretrained(folder)
        return {"vocabulary": len(tokenizer)}

    @cached_property
    def tokens(self) -> Any:
        """The tokenizer."""
        from smolmoe.moe.loading import load_tokenizer

        return load_tokenizer(self.path / "tokenizer")

    @cached_property
    def held_out(self) -> HeldOut:
        from smolmoe.data.tokens import encode_documents
        from smolmoe.evaluation.held_out import cut_windows

        documents = self.documents("validation")
        return cut_windows(
            encode_documents(self.tokens, [document.text for document in documents]),
            [document.domain or "text" for document in documents],
            length=self.settings.length,
            start=self.tokens.eos_token_id,
            budget=self.settings.held_out_tokens,
            per_document=HELD_OUT_PER_DOCUMENT,
        )

    # -- models

    def train_dense(self) -> dict[str, Any]:
        s = self.settings
        config = {
            "model_type": "llama",
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "max_position_embeddings": 2 * s.length,
            "tie_word_embeddings": True,
        }
        wanted = self.recipe("dense", {"config": config}, s.dense_steps, s.batch)
        # It ends at the rate that the next training begins with: nothing is warmed up anew at the boundary.
        wanted["trainer"] |= {
            "learning_rate": s.dense_learning_rate,
            "lr_scheduler_kwargs": {"min_lr_rate": s.moe_learning_rate / s.dense_learning_rate},
        }
        return self.train("dense", "Training the dense model", self.affordable(wanted, s.dense_seconds, warm=True))

    def upcycle(self) -> dict[str, Any]:
        from smolmoe.surgery.run import upcycle

        s = self.settings
        result = upcycle(
            self.path / "dense",
            self.path / "moe",
            experts=s.experts,
            top_k=s.top_k,
            seed=s.seed,
            overwrite=True,  # of what an interrupted run left; a finished stage does not come here again
            report=self.report,
        )
        return result.to_json()

    def doctor(self) -> dict[str, Any]:
        from smolmoe.verification.doctor import doctor

        self.report("Looking for what would waste the training", 0, 0)
        data = self.path / "corpus" / "validation.jsonl"
        return doctor(self.path / "moe", data=data, seed=self.settings.seed).to_json()

    def train_moe(self) -> dict[str, Any]:
        s = self.settings
        wanted = self.onward("moe-trained", "moe", s.moe_steps)
        wanted["objective"] = {"load_balance": BALANCE_WEIGHT, "z_loss": Z_WEIGHT}
        wanted["routing"] = {"warmup_steps": ROUTER_WARMUP}
        return self.train("moe-trained", "Training the MoE on", self.affordable(wanted, s.moe_seconds))

    def train_dense_on(self) -> dict[str, Any]:
        """The same training as the MoE's, from the same function, on the same batches."""
        recipe = self.onward("dense-trained", "dense", self.records["moe-trained"]["steps"])
        return self.train("dense-trained", "Training the dense model on, for comparison", recipe)

    def onward(self, name: str, source: str, steps: int) -> dict[str, Any]:
        """The recipe of a training that goes on where the dense model's ended: its text, its rate, its moments."""
        s = self.settings
        recipe = self.recipe(name, {"path": str(self.path / source)}, steps, s.moe_batch)
        recipe["data"]["skip"] = self.records["dense"]["blocks"]
        recipe["trainer"]["learning_rate"] = s.moe_learning_rate
        recipe["carry"] = {"optimizer": str(self.path / TRAINING / "dense")}
        return recipe

    def recipe(self, name: str, model: dict[str, Any], steps: int, batch: int) -> dict[str, Any]:
        s = self.settings
        corpus = self.path / "corpus"
        return {
            "model": {**model, "attention": ATTENTION},
            "tokenizer": str(self.path / "tokenizer"),
            "data": {
                "sources": [{"path": str(corpus / "train.jsonl")}],
                "validation": [{"path": str(corpus / "validation.jsonl")}],
                "length": s.length,
                "seed": s.seed,
                "cache": str(self.path / "cache"),
            },
            "evaluation": {"tokens": s.held_out_tokens, "per_document": HELD_OUT_PER_DOCUMENT},
            "trainer": {
                "max_steps": steps,
                "per_device_train_batch_size": batch,
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
                "warmup_steps": 0,
                "report_to": "none",
            },
            "seed": s.seed,
            "out": str(self.path / TRAINING / name),
        }

    def affordable(self, wanted: dict[str, Any], seconds: float, *, warm: bool = False) -> dict[str, Any]:
        """The wanted training, shortened on a machine that would take longer than `seconds`.

        The trial's folder is hidden and goes when it is over: it is no training of the quickstart.
        """
        from smolmoe.training.metrics import read_metrics
        from smolmoe.training.run import train

        self.report("Timing this machine", 0, 0)
        trial = json.loads(json.dumps(wanted))
        folder = self.path / f".{TRAINING}-trial"
        trial |= {"evaluation": {"tokens": 1, "every": TRIED}, "out": str(folder)}
        trial["trainer"] |= {"max_steps": TRIED, "logging_steps": 1, "save_strategy": "no"}
        trial.pop("carry", None)
        rows = read_metrics(train(trial, overwrite=True).out / "metrics.jsonl")
        shutil.rmtree(folder, ignore_errors=True)
        # The fastest step tells what the machine can do; the others, what else it was doing at the time.
        fastest = max(row["tokens_per_second"] for row in rows if row["kind"] == "window")
        trainer = wanted["trainer"]
        tokens = trainer["per_device_train_batch_size"] * self.settings.length
        most = trainer["max_steps"]
        steps = max(math.ceil(most * LEAST), min(most, int(seconds * fastest / tokens)))
        if steps < most:
            logger.warning("This machine is slow: %d steps of training instead of %d.", steps, most)
        trainer |= {"max_steps": steps, "warmup_steps": steps // 20 if warm else 0}
        return wanted

    def train(self, name: str, title: str, recipe: dict[str, Any]) -> dict[str, Any]:
        """Train, put the model into its place, and say what was measured."""
        from smolmoe.training.checkpoints import whole_checkpoints
        from smolmoe.training.metrics import read_metrics
        from smolmoe.training.run import train

        steps = recipe["trainer"]["max_steps"]
        measured = [round(steps * (i + 1) / (INTERIM + 1)) for i in range(INTERIM)]
        recipe["evaluation"] |= {"every": steps, "at": measured}
        self.report(title, 0, steps)
        result = train(
            recipe,
            resume="latest" if whole_checkpoints(Path(recipe["out"])) else None,
            overwrite=True,
            report=lambda stage, done, total: self.report(title, done, steps),
        )
        with self.folder.folder(name) as folder:
            shutil.copytree(result.model, folder, dirs_exist_ok=True)
        blocks = steps * recipe["trainer"]["per_device_train_batch_size"]
        return {
            "parameters": result.summary["parameters"]["total"],
            "steps": steps,
            "start": recipe["data"].get("skip", 0),
            "blocks": blocks,
            "block_tokens": self.settings.length,
            "train_seconds": result.summary["train_seconds"],
            "points": list(_points(read_metrics(result.out / "metrics.jsonl"))),
            **self.measure(name),
        }

    def measure(self, name: str) -> dict[str, Any]:
        """The held-out losses of a checkpoint as written, in fp32; of an MoE, where its tokens go as well."""
        from smolmoe.evaluation.held_out import document_losses
        from smolmoe.evaluation.load import domain_load
        from smolmoe.moe.loading import load_model

        self.report("Measuring held-out losses", 0, 0)
        model = load_model(self.path / name)
        losses = document_losses(model, self.held_out)
        record: dict[str, Any] = {"loss": losses.loss, "by_domain": losses.by_domain, "held_out": asdict(losses)}
        if name.startswith("moe"):
            record["load"] = domain_load(model, self.held_out, LOAD_TOKENS)
        return record

    def samples(self) -> dict[str, Any]:
        from smolmoe.inference.generate import generate

        self.report("Writing samples", 0, 0)
        found: dict[str, Any] = {}
        for domain, prompt in PROMPTS.items():
            found[domain] = {"prompt": prompt}
            for name in ("dense", "moe", "moe-trained"):
                result = generate(
                    self.path / name,
                    prompt,
                    max_new_tokens=self.settings.new_tokens,
                    temperature=0.0 if domain == "math" else 0.6,
                    repetition_penalty=1.0 if domain == "math" else 1.15,
                    seed=self.settings.seed,
                )
                found[domain][name] = result.texts[0]
        return found

    # -- report

    def finish(self) -> QuickstartResult:
        """Put the stages' records together: `metrics.jsonl`, `boundary.png`, `report.json`."""
        from smolmoe.core.provenance import versions
        from smolmoe.demo import summary
        from smolmoe.reports.boundary import plot_boundary

        self.report("Writing the report", 0, 0)
        records = self.records
        boundary = summary.boundary(records)
        curves = {name: summary.curve(name, records) for name in summary.TRAINED if name in records}
        rows = "".join(json.dumps(row) + "\n" for row in summary.metrics(records))
        write_text(self.path / "metrics.jsonl", rows)
        plot_boundary(
            self.path / "boundary.png", boundary, curves["dense"], curves["moe-trained"], curves.get("dense-trained")
        )
        report = {
            "schema_version": SCHEMA_VERSION,
            "settings": asdict(self.settings),
            "versions": versions(),
            "boundary": boundary.to_json(),
            "stages": {name: summary.without_bulk(record) for name, record in records.items()},
            "wall_seconds": round(sum(record["wall_seconds"] for record in records.values()), 1),
        }
        write_json(self.path / "report.json", report)
        return QuickstartResult(self.path, records["upcycle"]["verification"]["passed"], boundary, report)


def _points(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The curve of a training: the language-modelling loss of each step's batch, and the held-out ones between."""
    last = max(row["step"] for row in rows)
    for row in rows:
        if row["kind"] == "step":
            yield {"kind": "train", "step": row["step"], "loss": row["ce"]}
        elif row["kind"] == "held_out" and 0 < row["step"] < last:
            yield {"kind": "held_out", "step": row["step"], "loss": row["loss"]}
