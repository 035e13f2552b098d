"""verify: the files of an MoE against its dense source, or run by an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.results.verification import QUICK_LEAVES_OUT
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.results.engine import EngineVerification
    from smolmoe.verification.verify import Verification


def show_verification(result: Verification, option: str = "--mode") -> None:
    """The measurements, and at the end the verdict.

    Args:
        option: of the command, that sets the extent of the measurement.
    """
    logits, control = result.logits, result.control
    tokens = f"{sum(result.lengths)} tokens in {len(result.lengths)} sequences of {result.text}"
    print(f"Verified on the files as written ({result.mode}): against {result.reference}, in float32, {tokens}")
    rows: list[tuple[str, object]] = [
        (
            "logits",
            f"max |Δ| {logits.max_abs:.2g}, mean |Δ| {logits.mean_abs:.2g} (largest logit {logits.max_logit:.3g})",
        ),
        ("per sequence", f"max |Δ| {' '.join(f'{value:.1g}' for value in logits.per_sequence)}"),
        ("KL, top-1", f"{max(logits.kl, 0):.2g} nats, {logits.top1:.2%} the same top-1 token"),
        ("loss", f"{logits.dense_loss:.4f} dense, {logits.loss:.4f} MoE (Δ {logits.delta_loss:+.2g})"),
    ]
    if (padding := result.padding) is not None:
        rows.append(("padded left, right", f"max |Δ| {padding.left:.2g}, {padding.right:.2g}"))
    if (decoding := result.decoding) is not None:
        said = _decoded(decoding.equal, decoding.new_tokens, decoding.first_difference, decoding.max_abs)
        rows.append(("with KV cache", said))
    said = f"loss {control.loss:.4f}, max |Δ| {control.max_abs:.2g}: the control, without the copied FFNs"
    rows.append(("random experts", said))
    if (experts := result.experts) is not None:
        rows.append(("experts reached", f"{experts.reached} of {experts.total} in all layers"))
    errors = [error for error in result.ffn_error if error is not None]
    if errors:
        rows.append(("FFN error by layer", " ".join(f"{error:.2g}" for error in errors)))
    if result.half is not None:
        half = result.half
        rows.append(
            (
                f"in {half.dtype}",
                f"mean |Δ| {half.mean_abs:.2g}, noise of the dense model {half.noise_mean_abs:.2g}; "
                f"{half.flips:.2%} of choices change"
                + ("" if half.incomplete_groups is None else f", {half.incomplete_groups:.2%} incomplete groups"),
            )
        )
    if result.mode == "quick":
        rows.append(("not checked", f"{QUICK_LEAVES_OUT}; {option} full does"))
    print_rows(rows)
    failed = [check for check in result.checks if not check.passed]
    for check in failed:
        print(f"  FAILED {check.name}: measured {check.measured:.3g}, limit {check.limit:.3g}. {check.meaning}")
    verdict = "holds" if not failed else "does NOT hold"
    print(
        f"The claim ({result.claim.kind}) {verdict}: {len(result.checks) - len(failed)} of {len(result.checks)} checks."
    )


def _decoded(equal: bool, count: int, first: int | None, difference: float) -> str:
    tokens = f"{count} greedy tokens equal" if equal else f"greedy tokens differ from token {first}"
    return f"{tokens}, max |Δ| {difference:.2g}"


def show_engine(result: EngineVerification) -> None:
    """The engine's numbers, the verdict last."""
    version = f" {result.engine_version}" if result.engine_version else ""
    against = f"transformers {result.versions['transformers']} in float32"
    tokens = f"{sum(result.lengths)} tokens in {len(result.lengths)} sequences of {result.text}"
    print(f"{result.engine}{version} against {against}: {result.model_type} in {result.dtype}, {tokens}")
    found = result.difference
    if found is not None:
        limit = f"limit {found.limit:.2g}, {found.beyond} tokens beyond"
        gap = f"max |Δ| {found.max_abs:.2g}, mean |Δ| {found.mean_abs:.2g} nats ({limit})"
        close = "" if found.margin is None else f", first difference by a margin of {found.margin:.2g}"
        rows: list[tuple[str, object]] = [
            ("log-probabilities", gap),
            ("perplexity", f"{found.perplexity:.6g} transformers, {found.engine_perplexity:.6g} {result.engine}"),
            ("greedy tokens", f"{found.greedy_equal} of {found.greedy_tokens} equal{close}"),
        ]
        print_rows(rows)
    if result.known:
        print(f"  known of {result.engine}: {'; '.join(result.known)}")
    if result.last_lines:
        print("  last lines of the engine:")
        print("\n".join(f"    {line}" for line in result.last_lines))
    print(f"Verdict: {result.verdict}{'' if result.reason is None else f': {result.reason}'}")


def show(result: Verification | EngineVerification, given: Given) -> None:
    from smolmoe.results.engine import EngineVerification

    show_engine(result) if isinstance(result, EngineVerification) else show_verification(result)


COMMAND = Command(
    measure.verify,
    show,
    doing="Reading the models",
    names={"engine": ("--in",)},
    exit_code=lambda result, given: 0 if result.passed else 1,
)
