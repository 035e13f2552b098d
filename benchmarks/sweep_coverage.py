"""How often a sweep's 95% intervals hold the truth: on curves of known numbers with noise of known size.

    python benchmarks/sweep_coverage.py

Writes the table into docs/how-to/sweep.md; about a minute of one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from machine import put_between
from smolmoe.core.statistics import Interval
from smolmoe.scaling.law import fit_curves, interval, law_of
from smolmoe.scaling.law_noise import Observed

CURVES, DRAWS = 100, 300
FIRST = 500_000
PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "sweep.md"


@dataclass(frozen=True)
class Case:
    """A law, how it is measured, and the noise, relative to the loss: of each run, and of what a seed shares."""

    offset: float
    scale: float
    exponent: float
    budgets: int
    seeds: int
    noise: float
    shared: float = 0.0


CASES = (
    Case(3.1, 40, 0.33, 4, 1, 0.002),
    Case(3.1, 40, 0.33, 5, 1, 0.002),
    Case(3.1, 40, 0.33, 8, 1, 0.002),
    Case(2.0, 300, 0.50, 5, 2, 0.003),
    Case(3.1, 40, 0.33, 5, 3, 0.002),
    Case(3.1, 40, 0.33, 5, 3, 0.002, 0.004),
    Case(3.1, 40, 0.33, 6, 3, 0.0005, 0.002),
)


def main() -> None:
    heads = ("budgets", "seeds", "noise", "shared by a seed", "E", "α", "within", "at 10x", "width at 10x")
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for case in CASES:
        found, width = measure(case)
        shares = " | ".join(f"{share:.0%}" for share in found)
        about = f"{case.budgets} | {case.seeds} | {case.noise:.2%} | {case.shared:.2%}"
        lines.append(f"| {about} | {shares} | {width:.3f} |")
        print(lines[-1], flush=True)
    text = (
        "\n".join(lines) + f"\n\n{CURVES} curves a row, {DRAWS} draws each; the width is the median, in nats a token."
    )
    put_between(PAGE, "sweep-coverage", text)


def measure(case: Case) -> tuple[list[float], float]:
    """Shares of curves whose interval holds E, alpha, the loss between budgets and at 10x; the last one's width."""
    tokens = FIRST * 2.0 ** np.arange(case.budgets)
    places = np.array([3 * FIRST, 10 * tokens[-1]])
    truth = known(case, places)
    rng = np.random.default_rng(1)
    held, widths = np.zeros(4), []
    for number in range(CURVES):
        own = case.noise * rng.standard_normal((case.budgets, case.seeds))
        shared = case.shared * rng.standard_normal((1, case.seeds))
        losses = known(case, tokens)[:, None] * (1 + own + shared)
        one = Observed(tokens, losses[:, :, None], np.ones(1))
        fit = fit_curves([one], [None], draws=DRAWS, seed=number)[0]
        law = law_of(fit)
        assert law is not None
        value, drawn = fit.at(places)
        within, beyond = (interval(float(value[at]), drawn[:, at]) for at in range(2))
        pairs = (law.offset, case.offset), (law.exponent, case.exponent), (within, truth[0]), (beyond, truth[1])
        held += [holds(*pair) for pair in pairs]
        widths.append(beyond.high - beyond.low)
    return (held / CURVES).tolist(), float(np.median(widths))


def known(case: Case, tokens: np.ndarray) -> np.ndarray:
    return case.offset + case.scale * tokens**-case.exponent


def holds(ends: Interval, truth: float) -> bool:
    return ends.low <= truth <= ends.high


if __name__ == "__main__":
    main()
