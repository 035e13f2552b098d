"""verify, doctor: and how what they found is shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import Json, print_json, print_rows, quiet_libraries

if TYPE_CHECKING:
    from smolmoe.verification.doctor import Diagnosis
    from smolmoe.verification.verify import Verification


def add_to(app: typer.Typer) -> None:
    app.command()(verify)
    app.command()(doctor)


def verify(
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="Folder of the dense model.")],
    moe: Annotated[Path, typer.Argument(metavar="MOE", help="Folder of the MoE made from it.")],
    text: Annotated[
        Path | None, typer.Option(help="Text to measure on (.txt, .jsonl).  [default: of this Python installation]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the choice of text and of the random control.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure an MoE's files against the dense model and the claim that was made of them."""
    quiet_libraries()
    from smolmoe.verification.verify import verify as run

    result = run(dense, moe, text=text, device=device, seed=seed)
    if as_json:
        print_json(result.to_json())
    else:
        show_verification(result)
    raise typer.Exit(0 if result.passed else 1)


def show_verification(result: Verification) -> None:
    """The measurements, the verdict last."""
    logits, control, decoding = result.logits, result.control, result.decoding
    tokens = f"{sum(result.lengths)} tokens in {len(result.lengths)} sequences of {result.text}"
    print(f"Verified on the files as written: against {result.reference}, in float32, {tokens}")
    rows: list[tuple[str, object]] = [
        (
            "logits",
            f"max |Δ| {logits.max_abs:.2g}, mean |Δ| {logits.mean_abs:.2g} (largest logit {logits.max_logit:.3g})",
        ),
        ("per sequence", f"max |Δ| {' '.join(f'{value:.1g}' for value in logits.per_sequence)}"),
        ("KL, top-1", f"{max(logits.kl, 0):.2g} nats, {logits.top1:.2%} the same favourite"),
        ("loss", f"{logits.dense_loss:.4f} dense, {logits.loss:.4f} MoE (Δ {logits.delta_loss:+.2g})"),
        ("padded left, right", f"max |Δ| {result.padding.left:.2g}, {result.padding.right:.2g}"),
        ("with KV cache", _decoded(decoding.equal, decoding.new_tokens, decoding.first_difference, decoding.max_abs)),
        ("random experts", f"loss {control.loss:.4f}, max |Δ| {control.max_abs:.2g}: what the copied FFNs are worth"),
    ]
    errors = [error for error in result.ffn_error if error is not None]
    if errors:
        rows.append(("FFN error by layer", " ".join(f"{error:.2g}" for error in errors)))
    if result.half is not None:
        half = result.half
        rows.append(
            (
                f"in {half.dtype}",
                f"mean |Δ| {half.mean_abs:.2g}, the dense model's own noise {half.noise_mean_abs:.2g}; "
                f"{half.flips:.2%} of choices flip"
                + ("" if half.incomplete_groups is None else f", {half.incomplete_groups:.2%} incomplete groups"),
            )
        )
    print_rows(rows)
    failed = [check for check in result.checks if not check.passed]
    for check in failed:
        print(f"  FAILED {check.name}: measured {check.measured:.3g}, limit {check.limit:.3g}. {check.meaning}")
    verdict = "holds" if not failed else "does NOT hold"
    print(
        f"The claim ({result.claim.kind}) {verdict}: {len(result.checks) - len(failed)} of {len(result.checks)} checks."
    )


def _decoded(equal: bool, count: int, first: int | None, difference: float) -> str:
    tokens = f"{count} greedy tokens equal" if equal else f"greedy tokens differ from new token {first} on"
    return f"{tokens}, max |Δ| {difference:.2g}"


def doctor(
    moe: Annotated[Path, typer.Argument(metavar="MOE", help="Folder of any transformers MoE.")],
    data: Annotated[Path | None, typer.Option(help="Text to look on.  [default: of this Python installation]")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the choice of text.")] = 0,
    as_json: Json = False,
) -> None:
    """Look for what would waste a long training run: routers that cannot learn, dead or identical experts, leaks.

    Exits with 1 where an error was found, with 0 where there is nothing, or warnings and information only.
    """
    quiet_libraries()
    from smolmoe.verification.doctor import doctor as run

    diagnosis = run(moe, data=data, device=device, seed=seed)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        show_diagnosis(diagnosis)
    raise typer.Exit(1 if diagnosis.worst == "error" else 0)


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Findings, the worst first, each with what it means and what to do."""
    order = {"error": 0, "warning": 1, "info": 2}
    for finding in sorted(diagnosis.findings, key=lambda finding: order[finding.severity]):
        layers = f" (layers {_ranges(finding.layers)})" if finding.layers else ""
        print(f"{finding.severity}: {finding.message}{layers}  [{finding.code}]")
        print(f"    means: {finding.meaning}")
        print(f"    do:    {finding.remedy}")
    counts = {severity: sum(f.severity == severity for f in diagnosis.findings) for severity in order}
    print(f"{counts['error']} error(s), {counts['warning']} warning(s), {counts['info']} for information.")


def _ranges(layers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) as "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
