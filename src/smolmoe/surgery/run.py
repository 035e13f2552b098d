"""The stages combined: one command end to end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.devices import pick_device
from smolmoe.core.locks import locked
from smolmoe.core.progress import Progress, silent
from smolmoe.errors import VerificationError
from smolmoe.hub.card_writer import write_card
from smolmoe.recipe import UpcycleRecipe, parse

if TYPE_CHECKING:
    from smolmoe.core.checkpoint import Checkpoint
    from smolmoe.core.claim import Claim
    from smolmoe.results.verification import VerifyMode
    from smolmoe.surgery.plan import Plan
    from smolmoe.surgery.router_init import RouterRows
    from smolmoe.surgery.shared_neurons import SharedNeurons
    from smolmoe.verification.verify import Verification


@dataclass(frozen=True)
class UpcycleResult:
    """The result of `upcycle`.

    Attributes:
        out: the folder written (with dry_run: that would be written).
        plan: the conversion, its claim with predictions.
        router: rows and predicted load, if the router was made from domains.
        shared_neurons: the neurons of the shared expert, if they were ranked on text.
        verification: measurements on the written files; None with dry_run or verify="none".
        seconds: wall time.
        dry_run: nothing was written.
    """

    out: Path
    plan: Plan
    router: RouterRows | None
    shared_neurons: SharedNeurons | None
    verification: Verification | None
    seconds: float
    dry_run: bool

    @property
    def target(self) -> str:
        return self.plan.target.name

    @property
    def claim(self) -> Claim:
        return self.plan.claim

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "out": str(self.out),
            "dry_run": self.dry_run,
            "target": plan.target.name,
            "architecture": plan.target.architecture,
            "claim": plan.claim.to_json(),
            "parameters": {"dense": plan.dense_parameters.to_json(), "moe": plan.parameters.to_json()},
            "bytes": plan.nbytes,
            "estimate": estimate(plan),
            "runs_in": plan.runs_in,
            "warnings": list(plan.warnings),
            "router": None if self.router is None else self.router.to_json(),
            "shared_neurons": None if self.shared_neurons is None else self.shared_neurons.to_json(),
            "verification": None if self.verification is None else self.verification.to_json(),
            "seconds": round(self.seconds, 2),
        }


def upcycle(
    source: str | Path, out: str | Path, *, dry_run: bool = False, report: Progress | None = None, **options: Any
) -> UpcycleResult:
    """Convert a dense causal language model to a Mixture-of-Experts.

    Args:
        source: local folder or hub id.
        out: folder to write.
        dry_run: plan, check and predict, but write nothing.
        report: called as the work progresses.
        **options: every other field of `UpcycleRecipe`.

    Raises:
        SmolmoeError: a subclass naming the field, the value and the fix. No incomplete output is left.
        VerificationError: the files do not satisfy the claim; they are kept for inspection.
    """
    recipe = parse(UpcycleRecipe, {"source": str(source), "out": out, **options})
    return run_upcycle(recipe, dry_run=dry_run, report=report)


def run_upcycle(recipe: UpcycleRecipe, *, dry_run: bool = False, report: Progress | None = None) -> UpcycleResult:
    """`upcycle` for a parsed recipe."""
    from smolmoe.surgery.imports.run import plain_checkpoint

    report = report or silent
    report("plan", 0, 0)
    if recipe.device != "auto":  # a device that is not there is refused before anything is written
        recipe = recipe.model_copy(update={"device": pick_device(recipe.device)})
    with plain_checkpoint(
        recipe.source,
        recipe.out,
        revision=recipe.revision,
        text_model=recipe.text_model,
        dequantise=recipe.dequantise,
    ) as base:
        return _upcycle(recipe, base, dry_run=dry_run, report=report)


def _upcycle(recipe: UpcycleRecipe, base: Checkpoint, *, dry_run: bool, report: Progress) -> UpcycleResult:
    from smolmoe.core.model_config import check_decodes
    from smolmoe.surgery.convert import check_room, convert
    from smolmoe.surgery.plan import make_plan
    from smolmoe.surgery.tensors.writer import check_sources

    start = time.monotonic()
    if recipe.verify != "none":
        check_decodes(base.folder)
    specialists = {name: open_checkpoint(path, field=f"expert {name}") for name, path in recipe.expert.items()}
    plan = make_plan(recipe, base, specialists)
    check_room(plan)
    if dry_run:  # writing checks them itself
        check_sources(plan.tensors, {name: source.checkpoint for name, source in plan.sources.items()})
    ranked = _shared_neurons(plan, report)
    if ranked is not None:
        plan = make_plan(recipe, base, specialists, shared_neurons=ranked.neurons)
    router = _router_rows(plan, report)
    if recipe.verify != "none":
        plan = _predict(plan, router, report)
    if dry_run:
        return UpcycleResult(recipe.out, plan, router, ranked, None, time.monotonic() - start, True)
    done = 0

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report("write", done, plan.nbytes)

    rows = router.rows if router else None
    out = convert(plan, rows=rows, router=router.to_json() if router else None, progress=progress)
    with locked(out):  # so that the measured files are the written ones
        write_card(out)
        verification = None if recipe.verify == "none" else _verify(plan, out, recipe.verify, report)
    return UpcycleResult(recipe.out, plan, router, ranked, verification, time.monotonic() - start, False)


def _shared_neurons(plan: Plan, report: Progress) -> SharedNeurons | None:
    if plan.recipe.shared_by == "first":
        return None
    from smolmoe.surgery.shared_neurons import rank_neurons

    report("rank neurons", 0, 0)
    return rank_neurons(plan, _tokenizer(plan, "neurons are ranked on text"))


def _router_rows(plan: Plan, report: Progress) -> RouterRows | None:
    if plan.recipe.router != "domains":
        return None
    from smolmoe.surgery.router_init import domain_rows

    report("router", 0, 0)
    return domain_rows(plan, _tokenizer(plan, "a router from domains needs text"))


def _predict(plan: Plan, router: RouterRows | None, report: Progress) -> Plan:
    if plan.claim.kind != "deviates":
        return plan
    from smolmoe.data.text import default_documents, encode
    from smolmoe.surgery.predict import with_predictions

    report("predict", 0, 0)
    tokenizer = _tokenizer(plan, "errors are predicted on text")
    sequences = encode(tokenizer, default_documents(), length=128, count=4, seed=plan.recipe.seed)
    return with_predictions(plan, sequences, router.rows if router else None)


def _tokenizer(plan: Plan, why: str) -> Any:
    from smolmoe.errors import SourceError
    from smolmoe.moe.loading import load_tokenizer
    from smolmoe.surgery.sources import BASE

    folder = plan.sources[BASE].checkpoint.folder
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise SourceError(
            f"has no tokenizer, and {why}.",
            field="source",
            value=str(folder),
            fix="Add the tokenizer files to the folder, or use `verify='none'` and ask for nothing made from text.",
        )
    return tokenizer


def _verify(plan: Plan, out: Path, mode: VerifyMode, report: Progress) -> Verification:
    from smolmoe.surgery.convert import record_verification
    from smolmoe.surgery.sources import BASE
    from smolmoe.verification.verify import verify

    report("verify", 0, 0)
    options: dict[str, Any] = {"device": plan.recipe.device, "seed": plan.recipe.seed, "report": report}
    verification = verify(plan.sources[BASE].checkpoint.folder, out, mode=mode, **options)
    record_verification(out, verification.to_json())
    write_card(out)
    if not verification.passed:
        failed = [check for check in verification.checks if not check.passed]
        raise VerificationError(
            "; ".join(f"{check.name}: measured {check.measured:.3g}, limit {check.limit:.3g}" for check in failed),
            field="out",
            value=str(out),
            fix="The files are kept for inspection; `smolmoe verify` measures them again.",
        )
    return verification


# Rough rates of a small machine: bytes per second moved and flushed by the kernel, and computed.
_MOVED_RATE, _COMPUTED_RATE = 6e8, 1e8
_BARE_MEMORY, _TORCH_MEMORY = 70_000_000, 400_000_000


def estimate(plan: Plan) -> dict[str, Any]:
    """Rough cost of a conversion: bytes on disk, peak memory of the process and time without verification.

    Blocks that are only copied never enter the process. The others are held in float32 one at a time, in up to four
    copies while they are sampled, scaled and cast.
    """
    from smolmoe.surgery.tensors.writer import moved_range

    sources = {name: source.checkpoint for name, source in plan.sources.items()}
    computed = [
        (block.size, block.size * tensor.nbytes // tensor.size, bool(block.reads))
        for tensor in plan.tensors
        for block in tensor.blocks
        if moved_range(block, tensor.dtype, sources) is None
    ]
    with_torch = any(reads for _, _, reads in computed)
    nbytes = sum(size for _, size, _ in computed)
    largest = max((count for count, _, reads in computed if reads), default=0)
    seconds = (5 if with_torch else 0.5) + (plan.nbytes - nbytes) / _MOVED_RATE + nbytes / _COMPUTED_RATE
    return {
        "disk_bytes": plan.nbytes,
        "memory_bytes": (_TORCH_MEMORY if with_torch else _BARE_MEMORY) + 16 * largest,
        "seconds": round(seconds, 1),
    }
