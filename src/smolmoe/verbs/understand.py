"""Understand: the experts and routers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.progress import Progress
from smolmoe.recipe.probe import ProbeTextRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.recipe.verification import DoctorRecipe
from smolmoe.recipe.words import Device, Overwrite, Seed
from smolmoe.verbs.signature import said, takes

if TYPE_CHECKING:
    from smolmoe.inference.generate import Generation
    from smolmoe.results.probe import ProbeResult
    from smolmoe.selection.explain import RowScores, TextScore
    from smolmoe.verification.doctor import Diagnosis


@takes(DoctorRecipe, "moe")
def doctor(recipe: DoctorRecipe, *, sequences: int = 8, length: int = 128) -> Diagnosis:
    """Find routers and experts that would waste a training run.

    The command exits with 1 if an error is found, and with 0 for warnings and information only.
    """
    from smolmoe.verification.doctor import doctor as run

    return run(**recipe.model_dump(), sequences=sequences, length=length)


@takes(ProbeTextRecipe, "model", "data", "out")
def probe(recipe: ProbeTextRecipe, *, overwrite: Overwrite = False, report: Progress | None = None) -> ProbeResult:
    """Measure what each expert of an MoE specialises in."""
    from smolmoe.probing.run import probe as run

    return run(recipe, overwrite=overwrite, report=report)


def generate(
    model: Annotated[str | Path, Field(description="folder or hub id of a dense or MoE model")],
    prompt: Annotated[Sequence[str] | str | None, Field(description="text to continue")] = None,
    *,
    prompts: Annotated[str | Path | None, Field(description="file of texts to continue, one per line")] = None,
    max_new_tokens: Annotated[int, Field(description="maximum length of a continuation, in tokens")] = 100,
    temperature: Annotated[float, Field(description="sampling temperature; 0 is greedy")] = 1.0,
    top_p: Annotated[float, Field(description="probability mass of nucleus sampling")] = 1.0,
    repetition_penalty: Annotated[float, Field(description="repetition penalty; 1 is none")] = 1.0,
    num: Annotated[int, Field(description="number of continuations per text")] = 1,
    seed: Seed = 0,
    batch_size: Annotated[int, Field(description="number of texts in a batch")] = 16,
    experts: Annotated[
        str | Sequence[str | int] | None,
        Field(description="names or indices of the experts to load, or auto to choose by the prompt (default: all)"),
    ] = None,
    offload_experts: Annotated[
        bool, Field(description="experts kept on the CPU and moved as they are routed to")
    ] = False,
    expert_memory: Annotated[
        int | None, Field(description="memory for offloaded experts on the device (default: one layer and one token)")
    ] = None,
    device: Device = "auto",
) -> Generation | tuple[Generation, ...]:
    """Generate text with a model, or with some of its experts.

    Args:
        expert_memory: in bytes; the command takes MB.

    Returns:
        A `Generation` for one prompt given as a string, else a tuple with one for each prompt.
    """
    from smolmoe.data.text import read_lines
    from smolmoe.inference.generate import generate_all

    texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if prompts is not None:
        texts += read_lines(Path(prompts), field="prompts")
    found = generate_all(
        model,
        texts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num=num,
        seed=seed,
        batch_size=batch_size,
        device=device,
        experts=experts,
        offload_experts=offload_experts,
        expert_memory=expert_memory,
    )
    return found[0] if isinstance(prompt, str) and prompts is None else found


def score_data(
    data: Annotated[str, Field(description="text, or a file, folder or preset of rows")],
    *,
    prompt: Annotated[str | None, Field(description="prompt that the text answers (default: none)")] = None,
    against: Annotated[str | None, Field(description="rows to compare the text with (default: of this Python)")] = None,
    by: Annotated[tuple[str, ...], said(SelectRecipe, "by")] = (),
    tokenizer: Annotated[str | int | None, said(SelectRecipe, "tokenizer")] = None,
    model: Annotated[str | None, said(SelectRecipe, "model")] = None,
    text: Annotated[str, Field(description="column with the text")] = "text",
    prompt_column: Annotated[str | None, said(SelectRecipe, "prompt_column")] = None,
    text_weight: Annotated[float, said(SelectRecipe, "text_weight")] = 0.8,
    prompt_weight: Annotated[float, said(SelectRecipe, "prompt_weight")] = 0.2,
    top: Annotated[int, Field(description="number of frequent tokens, or of rows at each end, to show")] = 8,
    device: Device = "auto",
    report: Progress | None = None,
) -> TextScore | RowScores:
    """Explain the selection scores of a text or of a file's rows."""
    from smolmoe.recipe.base import parse
    from smolmoe.selection.run import names_rows, score_rows, score_text
    from smolmoe.verbs.train import sources

    def rows(name: str, **more: Any) -> SelectRecipe:
        whole = {"min_characters": 0, "min_prompt_characters": 0, "near_duplicates": 0.0, "by": by}
        whole |= {"tokenizer": tokenizer, "prompt_column": prompt_column, "model": model}
        weights = {"text_weight": text_weight, "prompt_weight": prompt_weight}
        return parse(SelectRecipe, sources({"data": name, "text": text, **whole, **weights, **more}))

    if names_rows(data):
        return score_rows(rows(data, device=device), top=top, report=report)
    return score_text(
        data,
        prompt=prompt,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        model=model,
        against=None if against is None else rows(against),
        weights=(text_weight, prompt_weight),
        top=top,
        device=device,
    )
