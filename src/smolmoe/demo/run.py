"""The whole way in one command, on text of this Python installation: train a small dense model, upcycle it, prove it,
train on, and report what happened to the loss across the boundary."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.demo.settings import PROMPTS, QuickstartSettings
from smolmoe.files import write_json
from smolmoe.stages import RunFolder

if TYPE_CHECKING:
    import torch

    from smolmoe.data.text import Document
    from smolmoe.evaluate.held_out import HeldOut
    from smolmoe.report.boundary import BoundaryReport
    from smolmoe.train.fit import FitSettings
    from smolmoe.upcycling import Report

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
BALANCE_WEIGHT = 0.01  # of the load-balancing loss that the MoE's own class adds (Switch, arXiv 2101.03961)
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
    return _Quickstart(RunFolder(out, asdict(settings), overwrite=overwrite), settings, report).run()


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
    def blocks(self) -> torch.Tensor:
        """Training blocks [N, S]: first those of the dense model, then those of what is trained on."""
        from smolmoe.train.packing import pack

        self.report("Tokenising", 0, 0)
        return pack(self.tokens, self.documents("train"), self.settings.length, self.settings.seed)

    @cached_property
    def held_out(self) -> HeldOut:
        from smolmoe.evaluate.held_out import cut_windows
        from smolmoe.train.packing import tokenize

        documents = self.documents("validation")
        return cut_windows(
            tokenize(self.tokens, documents),
            [document.domain or "text" for document in documents],
            length=self.settings.length,
            start=self.tokens.eos_token_id,
            budget=self.settings.held_out_tokens,
            per_document=HELD_OUT_PER_DOCUMENT,
        )

    # -- models

    def train_dense(self) -> dict[str, Any]:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from smolmoe.train.fit import FitSettings

        s = self.settings
        config = LlamaConfig(
            vocab_size=len(self.tokens),
            hidden_size=s.hidden,
            intermediate_size=s.intermediate,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            max_position_embeddings=2 * s.length,
            tie_word_embeddings=True,
            bos_token_id=self.tokens.bos_token_id,
            eos_token_id=self.tokens.eos_token_id,
            pad_token_id=self.tokens.pad_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            model = LlamaForCausalLM(config)
        wanted = FitSettings(s.dense_steps, s.batch, s.dense_learning_rate, evaluations=INTERIM, seed=s.seed)
        settings = self.affordable(model, wanted, s.dense_seconds)
        return self.train(model, "dense", "Training the dense model", settings, start=0)

    def upcycle(self) -> dict[str, Any]:
        from smolmoe.upcycling import upcycle

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
        from smolmoe.proof.doctor import doctor

        self.report("Looking for what would waste the training", 0, 0)
        data = self.path / "corpus" / "validation.jsonl"
        return doctor(self.path / "moe", data=data, seed=self.settings.seed).to_json()

    def train_moe(self) -> dict[str, Any]:
        from smolmoe.moe.loading import load_model
        from smolmoe.train.fit import FitSettings

        s = self.settings
        model = load_model(self.path / "moe")
        stored = model.config.output_router_logits, model.config.router_aux_loss_coef
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, BALANCE_WEIGHT

        def restore() -> None:
            model.config.output_router_logits, model.config.router_aux_loss_coef = stored

        wanted = FitSettings(s.moe_steps, s.moe_batch, s.moe_learning_rate, evaluations=INTERIM, seed=s.seed)
        settings = self.affordable(model, wanted, s.moe_seconds)
        start = self.records["dense"]["blocks"]
        return self.train(model, "moe-trained", "Training the MoE on", settings, start, before_saving=restore)

    def train_dense_on(self) -> dict[str, Any]:
        """The same training as the MoE's, from the same function, on the same batches."""
        from smolmoe.moe.loading import load_model
        from smolmoe.train.fit import FitSettings

        model = load_model(self.path / "dense")
        settings = FitSettings(**self.records["moe-trained"]["fit"])
        start = self.records["dense"]["blocks"]
        return self.train(model, "dense-trained", "Training the dense model on, for comparison", settings, start)

    def affordable(self, model: Any, wanted: FitSettings, seconds: float) -> FitSettings:
        """The wanted training, shortened on a machine that would take longer than `seconds`."""
        from smolmoe.train.fit import affordable_steps

        model.set_attn_implementation(ATTENTION)
        self.report("Timing this machine", 0, 0)
        steps = affordable_steps(model, self.blocks, wanted, seconds)
        if steps < wanted.steps:
            logger.warning("This machine is slow: %d steps of training instead of %d.", steps, wanted.steps)
        return replace(wanted, steps=steps, warmup=steps // 20)

    def train(
        self,
        model: Any,
        name: str,
        title: str,
        settings: FitSettings,
        start: int,
        *,
        before_saving: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Train on the blocks from `start` on, save, and measure what was saved."""
        from smolmoe.evaluate.held_out import document_losses
        from smolmoe.moe.loading import no_progress_bar
        from smolmoe.train.fit import fit

        model.set_attn_implementation(ATTENTION)
        self.report(title, 0, settings.steps)
        points = fit(
            model,
            self.blocks.roll(-start, 0),
            settings,
            evaluate=lambda model: document_losses(model, self.held_out).loss,
            on_step=lambda step, loss: self.report(title, step, settings.steps),
        )
        before_saving()
        with self.folder.folder(name) as folder:
            with no_progress_bar():
                model.cpu().save_pretrained(folder)
            self.tokens.save_pretrained(folder)
            write_json(folder / "smolmoe.json", self.provenance(name))
        return {
            "parameters": model.num_parameters(),
            "fit": asdict(settings),
            "start": start,
            "blocks": settings.steps * settings.batch,
            "block_tokens": self.settings.length,
            "distinct_blocks": len(self.blocks),
            "train_seconds": round(points[-1].seconds, 2),
            "points": [point.to_json() for point in points],
            **self.measure(name),
        }

    def provenance(self, name: str) -> dict[str, Any]:
        """What a trained checkpoint's smolmoe.json says."""
        from smolmoe.surgery.convert import versions

        return {
            "schema_version": SCHEMA_VERSION,
            "stage": f"quickstart {name}",
            "request": asdict(self.settings),
            "seed": self.settings.seed,
            "versions": versions(),
        }

    def measure(self, name: str) -> dict[str, Any]:
        """The held-out losses of a checkpoint as written, in fp32; of an MoE, where its tokens go as well."""
        from smolmoe.evaluate.held_out import document_losses
        from smolmoe.evaluate.load import domain_load
        from smolmoe.moe.loading import load_model

        self.report("Measuring held-out losses", 0, 0)
        model = load_model(self.path / name)
        losses = document_losses(model, self.held_out)
        record: dict[str, Any] = {"loss": losses.loss, "by_domain": losses.by_domain, "held_out": asdict(losses)}
        if name.startswith("moe"):
            record["load"] = domain_load(model, self.held_out, LOAD_TOKENS)
        return record

    def samples(self) -> dict[str, Any]:
        from smolmoe.generation import generate

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
        from smolmoe.demo import summary
        from smolmoe.report.boundary import plot_boundary
        from smolmoe.surgery.convert import versions

        self.report("Writing the report", 0, 0)
        records = self.records
        boundary = summary.boundary(records)
        curves = {name: summary.curve(name, records) for name in summary.TRAINED if name in records}
        with (self.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in summary.metrics(records))
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
