"""Remove experts from an MoE and add them, end to end: plan, write, reload, measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.claim import Claim
from smolmoe.core.progress import Progress
from smolmoe.errors import RequestError
from smolmoe.recipe.words import Device, DryRun, Moe, Out, Overwrite
from smolmoe.surgery.experts.job import Available, ExpertResult, Job

if TYPE_CHECKING:
    from smolmoe.surgery.experts.measure import Split
    from smolmoe.surgery.experts.merge import Groups
    from smolmoe.surgery.experts.moe_files import MoeFiles
    from smolmoe.surgery.experts.subset import Program

Name = str | int
Asked = Sequence[Name]
Data = Annotated[
    str | Path | None,
    Field(description="text with domains: half chooses the experts, half measures the loss (.jsonl, .txt, .parquet)"),
]
COUNTING = "Counting expert use"


def _find(files: MoeFiles, asked: Asked) -> tuple[int, ...]:
    from smolmoe.moe.names import find_experts

    return find_experts(SimpleNamespace(expert_names=files.names), asked, files.experts)


def _named(files: MoeFiles, experts: Sequence[int]) -> str:
    names = files.names or (None,) * files.experts
    listed = ", ".join(f"{e} ({names[e]})" if names[e] else str(e) for e in experts)
    return f"expert{'s' * (len(experts) > 1)} {listed}"


def _whole_groups(files: MoeFiles, experts: Sequence[int]) -> bool:
    size = files.granularity
    return all(sum(e // size == other // size for other in experts) == size for e in experts)


# -- extract ---------------------------------------------------------------------------------------------------------


def extract(
    model: Moe,
    out: Out,
    expert: Annotated[Asked | Name, Field(description="name or index of an expert; several make a smaller MoE")],
    *,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> ExpertResult:
    """Extract one expert as a dense model, or several as an MoE.

    Shards of one split FFN, asked for together, are one expert.

    Raises:
        SmolmoeError: a subclass naming the field, the value and the fix. No incomplete output is left.
        VerificationError: the files do not satisfy the claim; they are kept for inspection.
    """
    job = Job.begin("extract", model, out, device, overwrite, dry_run, report)
    files = job.files
    chosen = _find(files, [expert] if isinstance(expert, str | int) else expert)
    one_ffn = len(chosen) == 1 or (len(chosen) == files.granularity and _whole_groups(files, chosen))
    available = dict.fromkeys(files.layers, chosen)
    made = {"chosen": list(chosen)}
    if one_ffn and files.kind != "olmoe":
        program, claim = _dense(job, chosen)
        return job.finish(program, claim, _named(files, chosen), available=available, made=made)
    return _smaller(job, available, _named(files, chosen), None)


def _dense(job: Job, chosen: tuple[int, ...]) -> tuple[Program, Claim]:
    from smolmoe.surgery.experts.extract import Factors, constant_factors, dense_of

    files = job.files
    factors = constant_factors(files)
    if factors is not None:
        return (program := dense_of(files, chosen, factors)), _dense_claim(files, chosen, factors, program)
    what = "the expert's gate" if files.sigmoid else "the shared expert's gate"
    reason = f"An approximation: {what} depends on the token, and a dense FFN has no gate. Its mean on text replaces it"
    if job.dry_run:
        return dense_of(files, chosen, dict.fromkeys(files.layers, Factors())), Claim("none", f"{reason}.")
    from smolmoe.surgery.experts.measure import mean_factors

    job.report("Measuring the mean gates on text", 0, 0)
    factors = mean_factors(files, chosen, job.device)
    shown = [factor.routed if files.sigmoid else factor.shared for factor in factors.values()]
    layers = f"{min(shown):.3f} to {max(shown):.3f} across layers"
    claim = Claim("none", f"{reason} ({layers}); the deviation is measured, not predicted.")
    return dense_of(files, chosen, factors), claim


def _dense_claim(files: MoeFiles, chosen: Sequence[int], factors: Mapping[int, Any], program: Program) -> Claim:
    if len(chosen) > 1 and not all(files.same_rows(layer, chosen) for layer in files.layers):
        return Claim(
            "none",
            f"An approximation: the router rows of the {len(chosen)} shards differ, so their gates depend on the "
            f"token; here each gate is 1/{len(chosen)}. The deviation is measured, not predicted.",
        )
    scales = {scale for f in factors.values() for scale in (f.routed / len(chosen), f.shared)}
    dtypes = {tensor.dtype for tensor in program.tensors} - {"float32"}
    if dtypes and any(math.frexp(scale)[0] != 0.5 for scale in scales):
        return Claim("rounded", f"Down projections are scaled and rounded to {', '.join(sorted(dtypes))} again.")
    shared = (
        ", and the shared expert is joined to it in one wider FFN" if next(iter(files.layers.values())).shared else ""
    )
    if len(chosen) > 1:
        return Claim("exact", f"The {len(chosen)} shards share a router row, so each gate is 1/{len(chosen)}{shared}.")
    because = "gates sum to 1" if files.renormalises else "a softmax over the one expert that may be chosen is 1"
    return Claim("exact", f"The expert's gate is constant ({because}){shared}.")


def _smaller(job: Job, available: Available, said: str, split: Split | None) -> ExpertResult:
    """The experts of each layer as a smaller MoE of the same class."""
    from smolmoe.surgery.experts.subset import subset_of

    files = job.files
    groups = all(_whole_groups(files, experts) for experts in available.values())
    claim = Claim(
        "exact",
        "The function of the MoE restricted to these experts. The loss caused by the removal is not part of "
        "this claim.",
    )
    return job.finish(
        subset_of(files, available),
        claim,
        said,
        available=available,
        split=split,
        granularity=files.granularity if groups else 1,
        made={"chosen": {str(layer): list(experts) for layer, experts in available.items()}},
    )


# -- prune -----------------------------------------------------------------------------------------------------------


def prune(
    model: Moe,
    out: Out,
    *,
    keep: Annotated[Asked | None, Field(description="name or index of an expert to keep")] = None,
    experts: Annotated[int | None, Field(description="number of experts to keep: the most used on the data")] = None,
    data: Data = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> ExpertResult:
    """Remove experts: keep those named, or those used most.

    Use is the summed gate weight on text. Each layer keeps its own most used experts, unless experts have names: then
    all layers keep the same ones. Of a split FFN all shards are kept or none.

    Raises:
        SmolmoeError, VerificationError: as `extract` does.
    """
    if (keep is None) == (experts is None):
        raise RequestError(
            "neither the experts to keep nor their number is given.",
            field="keep",
            value=keep,
            fix="Use `keep`, or `experts=N` with `data=FILE`.",
        )
    job = Job.begin("prune", model, out, device, overwrite, dry_run, report)
    split = job.split(data)
    if keep is not None:
        chosen = _find(job.files, keep)
        return _smaller(job, dict.fromkeys(job.files.layers, chosen), _named(job.files, chosen), split)
    count = _check_count(job.files, experts or 0, job.files.granularity)
    available = _most_used(job, count, split)
    sets = set(available.values())
    said = _named(job.files, sets.pop()) if len(sets) == 1 else f"the {count} most used in each layer"
    return _smaller(job, available, said, split)


def _check_count(files: MoeFiles, count: int, multiple: int = 1) -> int:
    if not 1 <= count < files.experts or count % multiple:
        of = f" and a multiple of {multiple}, the shards of one FFN" if multiple > 1 else ""
        raise RequestError(f"must be from 1 to {files.experts - 1}{of}.", field="experts", value=count)
    return count


def _need(split: Split | None) -> Split:
    if split is None:
        raise RequestError("expert use is counted on text.", field="data", value=None, fix="Give `data=FILE`.")
    return split


def _most_used(job: Job, count: int, split: Split | None) -> dict[int, tuple[int, ...]]:
    from smolmoe.surgery.experts.measure import expert_use

    files, split = job.files, _need(split)
    if job.dry_run:  # the choice does not affect the size
        return dict.fromkeys(files.layers, tuple(range(count)))
    job.report(COUNTING, 0, 0)
    use = expert_use(files.folder, split.choice, job.device).gates
    if files.names is not None:
        shares = sum(gates / gates.sum() for gates in use.values())
        use = dict.fromkeys(use, shares)  # type: ignore[arg-type]
    size = files.granularity
    chosen = {}
    for layer, gates in use.items():
        best = gates.unflatten(0, (-1, size)).sum(1).topk(count // size).indices.tolist()
        chosen[layer] = tuple(sorted(group * size + shard for group in best for shard in range(size)))
    return chosen


# -- merge-experts ----------------------------------------------------------------------------------------------------


def merge_experts(
    model: Moe,
    out: Out,
    *,
    groups: Annotated[
        Sequence[Asked] | None, Field(description="experts that are averaged into one: names or indices")
    ] = None,
    experts: Annotated[
        int | None, Field(description="number of experts to leave: similar ones are merged into the most used")
    ] = None,
    data: Data = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> ExpertResult:
    """Average groups of experts, weighted by use if data is given.

    As in arXiv 2310.01334, without alignment. Router rows are averaged too; experts in no group stay as they are.

    Raises:
        SmolmoeError, VerificationError: as `extract` does.
    """
    from smolmoe.surgery.experts.merge import check_groups, merge_claim, merged, refuse_split

    if (groups is None) == (experts is None):
        raise RequestError(
            "neither the experts to merge nor the number to keep is given.",
            field="groups",
            value=groups,
            fix="Use `groups=[[0, 1], [2, 3]]`, or `experts=N` with `data=FILE`.",
        )
    job = Job.begin("merge-experts", model, out, device, overwrite, dry_run, report)
    files, split = job.files, job.split(data)
    refuse_split(files, "merged with another")
    weights = None
    if groups is not None:
        by_layer = dict.fromkeys(files.layers, check_groups(files, [_find(files, group) for group in groups]))
        if split is not None and not dry_run:
            weights = _use_by_layer(job, split)
    else:
        by_layer, weights = _similar(job, _check_count(files, experts or 0), split)
    sets = set(by_layer.values())
    said = _joined_groups(sets.pop()) if len(sets) == 1 else f"{experts} groups, different in each layer"
    made = {"groups": {str(layer): found for layer, found in by_layer.items()}, "weights": weights}
    return job.finish(merged(files, by_layer, weights), merge_claim(files, by_layer), said, split=split, made=made)


def _joined_groups(groups: Groups) -> str:
    return "experts " + ", ".join("+".join(map(str, group)) for group in groups)


def _use_by_layer(job: Job, split: Split) -> dict[int, list[float]]:
    from smolmoe.surgery.experts.measure import expert_use

    job.report(COUNTING, 0, 0)
    gates = expert_use(job.files.folder, split.choice, job.device).gates
    return {layer: use.tolist() for layer, use in gates.items()}


def _similar(job: Job, count: int, split: Split | None) -> tuple[dict[int, Groups], dict[int, list[float]] | None]:
    from smolmoe.surgery.experts.measure import expert_use
    from smolmoe.surgery.experts.merge import merge_by_use

    files, split = job.files, _need(split)
    if job.dry_run:  # the choice does not affect the size
        alone = tuple((e,) for e in range(count - 1))
        return dict.fromkeys(files.layers, (*alone, tuple(range(count - 1, files.experts)))), None
    job.report(COUNTING, 0, 0)
    use = expert_use(files.folder, split.choice, job.device)
    gates, similarity = use.gates, use.similarity
    if files.names is not None:
        shares = sum(found / found.sum() for found in gates.values())
        mean = sum(similarity.values()) / len(similarity)
        same = merge_by_use(shares.tolist(), mean, count)  # type: ignore[union-attr, arg-type]
        groups = dict.fromkeys(files.layers, same)
    else:
        groups = {layer: merge_by_use(gates[layer].tolist(), similarity[layer], count) for layer in files.layers}
    return groups, {layer: found.tolist() for layer, found in gates.items()}


# -- add-expert -------------------------------------------------------------------------------------------------------


def add_expert(
    model: Moe,
    out: Out,
    *,
    copy_of: Annotated[Name | None, Field(description="name or index of the expert to copy (default: 0)")] = None,
    dense: Annotated[
        str | Path | None, Field(description="folder or hub id of a dense model whose FFNs become the expert")
    ] = None,
    name: Annotated[str | None, Field(description="name of the new expert (default: none)")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> ExpertResult:
    """Add an expert: a copy of one, or a dense model's FFNs.

    The function is preserved if any MoE class can express it.

    Raises:
        SmolmoeError, VerificationError: as `extract` does.
    """
    from smolmoe.surgery.experts.add import add_claim, added, choose_method, copied, from_dense

    if copy_of is not None and dense is not None:
        raise RequestError("give either an expert to copy or a dense model, not both.", field="copy_of", value=copy_of)
    job = Job.begin("add-expert", model, out, device, overwrite, dry_run, report)
    files = job.files
    if dense is not None:
        new, origin = from_dense(files, dense), f"from {dense}"
    else:
        experts = _find(files, [0 if copy_of is None else copy_of])
        if len(experts) > 1:
            raise RequestError(
                f"several experts have this name: {', '.join(map(str, experts))}.",
                field="copy_of",
                value=copy_of,
                fix="Give an index.",
            )
        new, origin = copied(files, experts[0]), f"a copy of {_named(files, experts)}"
    method = choose_method(files, new)
    away = _away(job) if method == "away" else None
    program = added(files, new, method, name=name, away=away)
    said = f"expert {files.experts}{f' ({name})' if name else ''}, {origin}"
    return job.finish(program, add_claim(method), said, made={"method": method})


def _away(job: Job) -> dict[int, Any]:
    from smolmoe.surgery.experts.measure import rows_away

    return {} if job.dry_run else rows_away(job.files, job.device)
