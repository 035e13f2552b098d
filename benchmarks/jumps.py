"""What each way to share out the FFN costs at the start: the error of the layers and the loss, before any training.

    python benchmarks/jumps.py MODEL CALIBRATION.jsonl HELD_OUT.jsonl

Half of every FFN becomes the shared expert; the routed experts hold the other half whole (K = 1) or half of it each
(K = 2), so that a token uses as many neurons as in the dense model. Neurons are ranked on the calibration text and
everything is measured on the held-out text. Gates are independent.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smolmoe import upcycle
from smolmoe.families.spec import read_spec
from smolmoe.verification.verify import verify

ROUTED: dict[str, dict[str, Any]] = {
    "1 of 16 copies of the other half": {"top_k": 1},
    "2 of 16 complementary quarters": {"top_k": 2, "granularity": 2, "subsets": "complementary"},
    "2 of 16 random quarters": {"top_k": 2, "granularity": 2, "subsets": "random"},
}
SHARED: dict[str, dict[str, Any]] = {
    "first": {},
    "importance": {"shared_by": "importance"},
    "rate": {"shared_by": "rate"},
}


def measure(model: Path, options: dict[str, Any], held_out: Path, seed: int) -> tuple[float, float]:
    """The mean FFN error over layers, and the rise of the loss in nats per token, on 32 sequences."""
    with TemporaryDirectory() as folder:
        result = upcycle(model, Path(folder) / "moe", experts=16, verify="none", seed=seed, **options)
        found = verify(model, result.out, text=held_out, mode="quick", sequences=32)
    errors = [error for error in found.ffn_error if error is not None]
    return sum(errors) / len(errors), found.logits.delta_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    half = read_spec(asked.model).ffn_size // 2
    print("| routed | shared neurons | FFN error | loss (nats per token) |")
    print("| --- | --- | --- | --- |")
    for routed, options in ROUTED.items():
        for by, ranked in SHARED.items():
            text = {"calibration": asked.calibration} if ranked else {}
            request = {"shared": half, "gates": "independent", **options, **ranked, **text}
            error, rise = measure(asked.model, request, asked.held_out, asked.seed)
            print(f"| {routed} | {by} | {error:.3f} | {rise:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
