"""Run a model folder in an engine, and compare what it computes with transformers in float32."""

from __future__ import annotations

import math
import os
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.claim import Claim
from smolmoe.core.model_code import CODE_FILE, OURS
from smolmoe.core.progress import Progress, silent
from smolmoe.engines.process import Answer, engine_folder, find_python, run_engine
from smolmoe.engines.registry import runner_of
from smolmoe.errors import RequestError, SourceError, TargetError, VerificationError
from smolmoe.results.engine import EngineDifference, EngineVerification, Verdict

if TYPE_CHECKING:
    from torch import Tensor

# As for an exact claim, in shares of the largest |logit|. In float32 the random models of tests/zoo.py are up to 3.5e-6
# from themselves in float64 (transformers 5.24), and so is an engine: the limit leaves room for both, and no more.
TOLERANCE = Claim.tolerance
PROMPTS = 3
REASON_WIDTH = 300
GGUF_ENGINE = "llama.cpp"


def verify_in(
    engine: str,
    model: str | Path,
    *,
    python: str | Path | None = None,
    timeout: float = 600.0,
    text: Path | None = None,
    sequences: int = 4,
    length: int = 128,
    new_tokens: int = 16,
    device: str = "auto",
    seed: int = 0,
    report: Progress | None = None,
) -> EngineVerification:
    """Load a model folder in an engine, feed it the tokens of real text, and compare it with transformers.

    Args:
        engine: one of `registry.ENGINES`. For llama.cpp the folder is first exported as a GGUF file in float32.
        python: the Python that has it, see `find_python`. Nothing is installed.
        timeout: seconds for the engine, loading included; its whole process group is killed then.
        sequences, length: how many token sequences, of unequal lengths, and the longest.
        new_tokens: decoded greedily after each of three prompts.
        device: of transformers.

    Raises:
        RequestError: no such engine, no Python with it, or it is too old.
        SourceError, CheckpointError: transformers cannot load the folder.
        DataError: nothing to measure on.
    """
    report = report or silent
    runner = runner_of(engine)
    found = find_python(engine, runner, python)
    if timeout <= 0:
        raise RequestError("must be positive.", field="timeout", value=timeout, fix="E.g. `timeout=600`.")
    converter = gguf_converter() if engine == GGUF_ENGINE else None
    report("Running transformers in float32", 0, 0)
    reference = Reference.of(Path(model), text, sequences, length, new_tokens, device, seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="smolmoe-gguf-") as folder:
        given, refusal = reference.folder.absolute(), None
        if converter is not None:
            report("Writing a GGUF file", 0, 0)
            given, refusal = as_gguf(reference.folder, Path(folder), converter)
        if refusal is None:
            report(f"Running {engine}", 0, 0)
            job = {"model": str(given), **reference.job(new_tokens)}
            answer = run_engine(found, runner, job, timeout)
        else:
            answer = Answer({"stage": "load", "error": refusal, "version": None}, ())
    check_engine(engine, runner, found, answer)
    verdict, reason, difference = judge(reference, answer)
    return EngineVerification(
        engine=engine,
        engine_version=answer.found.get("version"),
        python=str(found),
        model=str(reference.folder),
        model_type=reference.model_type,
        dtype=reference.dtype,
        text=reference.origin,
        lengths=tuple(map(len, reference.sequences)),
        verdict=verdict,
        reason=reason,
        known=known_against(engine, reference.folder),
        difference=difference,
        last_lines=() if difference is not None else answer.last_lines,
        seconds=round(time.monotonic() - started, 1),
    )


@dataclass(frozen=True)
class Reference:
    """What transformers computes of a folder.

    Attributes:
        sequences: token ids [S].
        log_probs: of each next token, [S-1] per sequence.
        prompts, tokens: the first ids of some sequences, and the greedy tokens [N] after each.
        logits: at the greedy tokens, [N, V] per prompt.
        max_logit: largest |logit| of all sequences.
        trusted: the folder needs code, and it is smolmoe's.
    """

    folder: Path
    model_type: str
    dtype: str
    origin: str
    sequences: list[Tensor]
    log_probs: list[Tensor]
    prompts: list[Tensor]
    tokens: Tensor
    logits: Tensor
    max_logit: float
    trusted: bool

    @classmethod
    def of(
        cls, folder: Path, text: Path | None, count: int, length: int, new_tokens: int, device: str, seed: int
    ) -> Reference:
        from smolmoe.core.devices import pick_device
        from smolmoe.moe.streaming import StreamedModel
        from smolmoe.verification.logits import next_token_losses
        from smolmoe.verification.measure import decode
        from smolmoe.verification.sample import draw_sample, plain

        device = pick_device(device)
        with StreamedModel(folder, device=device) as streamed:
            sample = draw_sample(
                streamed.tokenizer, streamed.config, text, count=count, length=length, seed=seed, reserve=new_tokens
            )
            prompts = [sequence[: max(2, len(sequence) // 4)] for sequence in sample.sequences[:PROMPTS]]
            log_probs, largest = [], 0.0
            batches = [plain(sequence, device) for sequence in sample.sequences]
            for logits, ids in zip(streamed.logits(batches), sample.sequences, strict=True):
                largest = max(largest, logits.abs().max().item())
                log_probs.append(-next_token_losses(logits[0], ids).cpu())
            decoded = decode(streamed, prompts, new_tokens, device)
            return cls(
                streamed.folder,
                streamed.config.model_type,
                str(streamed.stored_dtype()).removeprefix("torch."),
                sample.origin,
                sample.sequences,
                log_probs,
                prompts,
                decoded.tokens.cpu(),
                decoded.logits.cpu(),
                largest,
                _has_our_code(streamed.folder),
            )

    def job(self, new_tokens: int) -> dict[str, Any]:
        """What the engine is asked, except for the model."""
        return {
            "sequences": [sequence.tolist() for sequence in self.sequences],
            "prompts": [prompt.tolist() for prompt in self.prompts],
            "new_tokens": new_tokens,
            "trust": self.trusted,
        }


def _has_our_code(folder: Path) -> bool:
    """Whether the folder's code is this version's, the only one that an engine may run."""
    code = folder / CODE_FILE
    return code.is_file() and code.read_bytes() == OURS.read_bytes()


def gguf_converter() -> Path:
    """llama.cpp's converter: where SMOLMOE_LLAMA_CPP says, else in the folder of `make engines`."""
    from smolmoe.surgery.export.gguf.converter import ENVIRONMENT, find_converter

    source = engine_folder(GGUF_ENGINE) / "source"
    return find_converter(os.environ.get(ENVIRONMENT) or (source if source.is_dir() else None))


def as_gguf(folder: Path, work: Path, converter: Path) -> tuple[Path, str | None]:
    """A float32 GGUF file of the folder, or the reason why it cannot be made."""
    from smolmoe.surgery.export.run import export

    out = work / "model.gguf"
    try:
        export(folder, out, "gguf", llama_cpp=converter)
    except (RequestError, SourceError, TargetError) as error:  # the converter's failure is a RequestError
        return out, error.message
    except VerificationError:  # llama-cpp-python is installed and found a difference, which is measured next
        pass
    return out, None


def check_engine(engine: str, runner: Any, python: Path, answer: Answer) -> None:
    """Raise RequestError if the Python has no engine that can be measured."""
    stage, version = answer.found["stage"], answer.found.get("version")
    fix = f"Give another `python=PATH`, or install it there: {runner.INSTALL}."
    if stage == "absent":
        raise RequestError(f"does not have {engine}.", field="python", value=str(python), fix=fix)
    if stage == "old":
        said = f"has {engine} {version}, which is too old: {runner.AT_LEAST} or newer is needed."
        raise RequestError(said, field="python", value=str(python), fix=fix)


def judge(reference: Reference, answer: Answer) -> tuple[Verdict, str | None, EngineDifference | None]:
    """The verdict, its reason unless it is "equal", and the numbers if there are any."""
    found = answer.found
    if found["stage"] != "done":
        reason = textwrap.shorten(str(found["error"]), REASON_WIDTH, placeholder=" ...")
        return ("does not load" if found["stage"] == "load" else "does not run"), reason, None
    difference = compare(reference, found["log_probs"], found["tokens"])
    # Where transformers is undecided by less than the limit on both sides, either token is right.
    sure = difference.margin is not None and difference.margin > 2 * difference.limit
    if difference.max_abs <= difference.limit and not sure:
        return "equal", None, difference
    rounding = f"float32 rounding explains {difference.limit:.2g}"
    return "differs", f"by up to {difference.max_abs:.2g} nats per token, {rounding}", difference


def known_against(engine: str, folder: Path) -> tuple[str, ...]:
    """What is known to make this engine compute the folder wrongly."""
    from smolmoe.families.engines import engine_name
    from smolmoe.hub.model_facts import ModelFacts

    return tuple(ModelFacts.read(folder).runs_in.get(engine_name(engine), ()))


def compare(
    reference: Reference, log_probs: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]
) -> EngineDifference:
    """The engine's numbers against the reference."""
    import torch

    expected = torch.cat(reference.log_probs).double()
    measured = torch.cat([torch.tensor(values, dtype=torch.float64) for values in log_probs])
    gaps = (measured - expected).abs()
    gaps[gaps.isnan()] = math.inf
    limit = TOLERANCE * reference.max_logit
    equal, margins = 0, []
    for own, theirs, logits in zip(reference.tokens.tolist(), tokens, reference.logits, strict=True):
        first = next((place for place, pair in enumerate(zip(own, theirs, strict=True)) if pair[0] != pair[1]), None)
        equal += len(own) if first is None else first
        if first is not None:
            margins.append((logits[first, own[first]] - logits[first, theirs[first]]).item())
    return EngineDifference(
        gaps.max().item(),
        gaps.mean().item(),
        limit,
        int((gaps > limit).sum()),
        expected.mean().neg().exp().item(),
        measured.mean().neg().exp().item(),
        equal,
        reference.tokens.numel(),
        max(margins, default=None),
    )
