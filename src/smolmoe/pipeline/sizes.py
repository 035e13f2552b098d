"""Sizes of a specialisation, chosen from the model, the text and the machine; each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smolmoe.core import units
from smolmoe.data.survey import Survey
from smolmoe.errors import RequestError
from smolmoe.pipeline.subject import Machine, Subject
from smolmoe.training.estimate import PROCESS_BYTES, STATE_BYTES, pass_bytes
from smolmoe.training.rate import Rate

LENGTHS = (64, 128, 256, 512, 1024, 2048)
SHORTEST = 256  # to which memory may shorten blocks
COVERED = 0.9  # share of the documents that a sequence should hold whole
MEMORY = 0.85  # share of the free memory to use
TRAINED = 0.7  # share of the time for training; the rest measures
# Of benchmarks/specialise.py: 100 router steps and 183 joint ones, of 16 x 256 tokens.
STEP_TOKENS = 4096
ROUTER_STEPS = 100
JOINT_STEPS = 180
FEWEST_STEPS = 10
PASSES = 3  # over the text, at most
EVALUATIONS = 4  # of each training
MOE_STEP = 1.2  # a step of an MoE of as many active FLOPs takes so much longer
ROUTERS_STEP = 0.67  # no gradients of weights
# Dense parameters up to which a learning rate is used. 1e-4: benchmarks/specialise.py; larger models move less.
RATES = ((300e6, 1e-4), (2e9, 5e-5), (float("inf"), 2e-5))


@dataclass(frozen=True)
class Choice:
    """A value that was chosen.

    Attributes:
        name: what it is, in words.
        shown: the value, as people read it.
        keys: of the recipe, that have it.
    """

    name: str
    shown: str
    why: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """One training step: what memory and documents decide.

    Attributes:
        length: tokens of a block.
        batch: blocks of one forward pass.
        optimizer: its name in transformers.
        memory: bytes that the MoE's training needs.
        attention: implementation; None for the model's default.
    """

    length: int
    batch: int
    optimizer: str
    memory: int
    attention: str | None
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Schedule:
    """How long is trained and measured: what time decides.

    Attributes:
        blocks, router_blocks: of a step.
        steps, router_steps: of the joint training (and the dense one), and of the routers'.
        rate: learning rate.
        tokens: what to measure, "evaluation", "probe", "losses" and "compare" -> held-out tokens per domain.
        seconds: kind of step, "joint", "routers" and "dense" -> seconds; and "measuring" in all.
    """

    blocks: int
    router_blocks: int
    steps: int
    router_steps: int
    rate: float
    tokens: Mapping[str, int]
    seconds: Mapping[str, float]
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = field(default=())


def choose_shape(subject: Subject, text: Survey, machine: Machine) -> Shape:
    """The block length, the batch and the optimiser.

    Raises:
        RequestError: the MoE's training does not fit into memory.
    """
    longest = 2048 if machine.on_gpu else 1024
    wanted = text.length(COVERED)
    fits = [length for length in LENGTHS if length <= min(subject.context, longest)] or [subject.context]
    best = next((one for one in fits if one >= wanted), fits[-1])
    optimizer, length, batch, memory = _fitting(subject, best, machine)
    bound = "" if length >= wanted else f"; the most {'of the model' if length == subject.context else 'that is tried'}"
    if length < best:
        bound = f"; longer ones do not fit into the {units.size(machine.memory)} of memory that are free"
    share = text.shorter(length)
    attention = "eager" if not machine.on_gpu and length <= 256 else None
    adam = optimizer.startswith("adamw")
    free = f"{units.size(memory)} of {units.size(machine.memory)} that are free"
    return Shape(
        length,
        batch,
        optimizer,
        memory,
        attention,
        (
            Choice(
                "sequence length",
                f"{length:,} tokens",
                f"{share:.0%} of your documents are not longer{bound}",
                ("defaults.data.length",),
            ),
            Choice(
                "optimiser",
                "AdamW" if adam else "Adafactor",
                f"with its states the MoE's training takes {free}"
                if adam
                else f"the states of AdamW would not fit; with this one the training takes {free}",
                ("defaults.trainer.optim",),
            ),
            Choice(
                "micro-batch",
                f"{batch} x {length}",
                "tokens of one forward pass, which fit next to weights and states",
                ("defaults.trainer.per_device_train_batch_size",),
            ),
            Choice("device", machine.device, f"{machine.name}; {machine.threads} of {machine.cores} cores compute"),
            Choice(
                "arithmetic",
                "bf16 autocast" if machine.bf16 else "float32",
                "the device multiplies bf16 in hardware" if machine.bf16 else "the device has no bf16 instructions",
                ("defaults.trainer.bf16",),
            ),
        ),
    )


def _fitting(subject: Subject, best: int, machine: Machine) -> tuple[str, int, int, int]:
    """The optimiser, the length of a block, the largest batch that fits with them, and the memory of all.

    AdamW comes before the best length, and shorter blocks before an error.
    """
    room = MEMORY * machine.memory
    sizes = (subject.layers, subject.hidden, subject.vocabulary)
    lengths = [best, *(length for length in reversed(LENGTHS) if SHORTEST <= length < best)]
    for optimizer in ("adamw_torch_fused", "adafactor"):
        state = STATE_BYTES[optimizer.partition("_")[0]] * subject.total
        state += 0 if machine.on_gpu else PROCESS_BYTES
        for length in lengths:
            batch = 1 << (max(1, (16 if machine.on_gpu else 4) * 1024 // length).bit_length() - 1)
            while batch:
                needed = state + pass_bytes(*sizes, batch=batch, length=length)
                if needed <= room:
                    return optimizer, length, batch, needed
                batch //= 2
    raise RequestError(
        f"training the MoE takes at least {units.size(needed)} of memory, and {units.size(machine.memory)} are free, "
        f"of which {MEMORY:.0%} are used: its {units.parameters(subject.total)} parameters alone take "
        f"{units.size(state)} with their gradients and states.",
        field="model",
        value=str(subject.folder),
        fix="Use a smaller model, a machine with more memory, fewer experts (`experts`, or fewer domains), or several "
        "GPUs (`smolmoe init`, then `accelerate launch` with parallel: fsdp).",
    )


def choose_schedule(
    subject: Subject, text: Survey, machine: Machine, shape: Shape, rate: Rate, minutes: float | None, named: bool
) -> Schedule:
    """The steps, the batch over accumulated passes, the learning rate, and what is measured.

    Args:
        minutes: for everything; None for one pass over the text.
        named: whether there is a training of the routers.
    """
    costs = _Costs(subject, shape, rate, named)
    most = PASSES * text.tokens
    asked = TRAINED * 60 * minutes if minutes is not None else costs.seconds(*costs.of_tokens(text.tokens, STEP_TOKENS))
    blocks = costs.blocks(asked, most)
    steps, router_steps = costs.steps(asked, blocks, most)
    whole = costs.seconds(steps, router_steps, blocks)
    measuring = (1 - TRAINED) / TRAINED * whole
    tokens = _measured_tokens(subject, text, rate, measuring, named)
    lr = next(value for size, value in RATES if subject.dense <= size)
    read = steps * blocks * shape.length
    limited = read > 0.9 * most
    why = (
        f"{units.tokens(read)} tokens, {read / max(1, text.tokens):.2g} passes over the text; "
        f"measured here: {units.tokens(rate.tokens)} tokens per second"
    )
    time = (
        "one pass over the text, where no time is given"
        if minutes is None
        else f"{PASSES} passes over the text, the most that is useful, take less than the {_minutes(minutes)}"
        if limited
        else f"{FEWEST_STEPS} steps, the fewest, take more than the {_minutes(minutes)}"
        if whole > 1.05 * asked
        else f"the budget of {_minutes(minutes)}, {TRAINED:.0%} of it for training"
    )
    choices = [
        Choice("time", units.duration(whole + measuring), time),
        Choice(
            "batch",
            f"{blocks} x {shape.length}",
            f"tokens of a step: {STEP_TOKENS:,} if the time allows {JOINT_STEPS} steps, else fewer; more in a long run",
            ("defaults.trainer.gradient_accumulation_steps",),
        ),
        Choice("steps, experts and dense", f"{steps:,}", why, ("stages.experts.train.trainer.max_steps",)),
        Choice(
            "learning rate",
            f"{lr:g}",
            f"for a model of {units.parameters(subject.dense)} parameters",
            ("stages.experts.train.trainer.learning_rate",),
        ),
    ]
    if named:
        choices.insert(
            3,
            Choice(
                "steps, routers",
                f"{router_steps:,}",
                f"of {costs.router_blocks(blocks)} x {shape.length} tokens; {ROUTER_STEPS} teach the domains",
                ("stages.routers.train.trainer.max_steps",),
            ),
        )
    few = steps < JOINT_STEPS // 3
    return Schedule(
        blocks,
        costs.router_blocks(blocks),
        steps,
        router_steps,
        lr,
        tokens,
        {**costs.each(blocks), "measuring": measuring},
        tuple(choices),
        (f"{steps} steps are few: the experts will hardly differ. Use more time or text.",) if few else (),
    )


def _minutes(minutes: float) -> str:
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:g} h"


@dataclass(frozen=True)
class _Costs:
    """Seconds of steps of each training."""

    subject: Subject
    shape: Shape
    rate: Rate
    named: bool

    def router_blocks(self, blocks: int) -> int:
        return max(1, blocks // 2)

    def each(self, blocks: int) -> dict[str, float]:
        """Kind of step -> seconds."""
        one = self.shape.length / self.rate.tokens
        moe = one * MOE_STEP * self.subject.active / self.subject.dense
        return {
            "joint": blocks * moe + self.subject.total / self.rate.parameters,
            "routers": self.router_blocks(blocks) * moe * ROUTERS_STEP,
            "dense": blocks * one + self.subject.dense / self.rate.parameters,
        }

    def routers(self, steps: int) -> int:
        return min(ROUTER_STEPS, max(FEWEST_STEPS, steps)) if self.named else 0

    def seconds(self, steps: int, router_steps: int, blocks: int) -> float:
        each = self.each(blocks)
        return steps * (each["joint"] + each["dense"]) + router_steps * each["routers"]

    def of_tokens(self, tokens: int, step: int) -> tuple[int, int, int]:
        """Steps, router steps and blocks of a training on so many tokens."""
        blocks = max(1, step // self.shape.length)
        steps = max(FEWEST_STEPS, tokens // (blocks * self.shape.length))
        return steps, self.routers(steps), blocks

    def steps(self, seconds: float, blocks: int, most: int) -> tuple[int, int]:
        """The joint and the router steps that fit."""
        low, high = FEWEST_STEPS, max(FEWEST_STEPS, most // (blocks * self.shape.length))
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(middle, self.routers(middle), blocks) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low, self.routers(low)

    def blocks(self, seconds: float, most: int) -> int:
        """Blocks of a step: those of `STEP_TOKENS`, fewer for enough steps in a short time, more in a long one."""
        blocks = max(1, STEP_TOKENS // self.shape.length)
        while blocks > 1 and blocks * self.shape.length > 1024 and self.steps(seconds, blocks, most)[0] < JOINT_STEPS:
            blocks //= 2
        while blocks * self.shape.length < 65536 and self.steps(seconds, blocks, most)[0] > 2000:
            blocks *= 2
        return blocks


def _measured_tokens(subject: Subject, text: Survey, rate: Rate, seconds: float, named: bool) -> dict[str, int]:
    """Held-out tokens per domain of each measurement, which together take about so long."""
    forward = 3 * rate.tokens  # a forward pass is a third of a training step
    domains = max(1, len(text.names))
    held_out = max(text.tokens * text.share, 1) if not text.own_held_out else float("inf")
    # what -> (share of the time, passes over the tokens, fewest, most)
    plans = {
        "evaluation": (0.3, (3 if named else 2) * (EVALUATIONS + 1), 1000, 8000),
        "compare": (0.25, 3, 2000, 20_000),
    }
    if named:
        plans |= {"probe": (0.2, 3, 2000, 12_000), "losses": (0.25, 2 * subject.experts, 200, 4000)}
    found = {}
    for what, (share, passes, fewest, most) in plans.items():
        fit = share * seconds * forward / (passes * domains * MOE_STEP)
        found[what] = int(min(most, max(fewest, fit), max(fewest, held_out)))
    return found
