"""Understand: the experts and routers of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.progress import Progress
from smolmoe.recipe.generation import GenerationRecipe
from smolmoe.recipe.probe import ProbeTextRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.recipe.verification import DoctorRecipe
from smolmoe.recipe.words import Device, Overwrite
from smolmoe.verbs.signature import said, spells_out, takes

if TYPE_CHECKING:
    from smolmoe.inference.chat import Chat
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


@spells_out(GenerationRecipe)
def generate(
    model: Annotated[str | Path, Field(description="folder or hub id of a dense or MoE model")],
    prompt: Annotated[Sequence[str] | str | None, Field(description="message to answer, or text to continue")] = None,
    *,
    prompts: Annotated[str | Path | None, Field(description="file of prompts, one per line")] = None,
    chat: Annotated[
        bool | None,
        Field(
            description="prompts sent as messages in the model's chat template, or continued as raw text "
            "(default: chat if there is a template)"
        ),
    ] = None,
    num: Annotated[int, Field(description="number of answers per prompt")] = 1,
    batch_size: Annotated[int, Field(description="number of prompts in a batch")] = 16,
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> Generation | tuple[Generation, ...]:
    """Answer or continue prompts with a model or some experts.

    In chat format each prompt is a user's message in the model's chat template. Raw text is continued as it is; base
    models know nothing else.

    Args:
        on_text: is passed a single text piece by piece as it is written; a raw text begins with its prompt.
        expert_memory: in bytes; the command takes MB.

    Returns:
        A `Generation` for one prompt given as a string, else a tuple with one for each prompt.
    """
    from smolmoe.data.text import read_lines
    from smolmoe.inference.generate import generate_all

    texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
    if prompts is not None:
        texts += read_lines(Path(prompts), field="prompts")
    found = generate_all(model, texts, chat=chat, num=num, batch_size=batch_size, on_text=on_text, **options)
    return found[0] if isinstance(prompt, str) and prompts is None else found


@spells_out(GenerationRecipe)
def chat(
    model: Annotated[str | Path, Field(description="folder or hub id of a dense or MoE model with a chat template")],
    **options: Any,
) -> Chat:
    """Chat with a model or some of its experts.

    The history is sent with each message. If the context is full, the oldest messages are left out. /help lists the
    commands in a chat. Each line of a pipe is a message.

    Args:
        expert_memory: in bytes; the command takes MB.

    Returns:
        A session, whose `say(text)` returns an answer as a `Generation` and `stream(text)` iterates over its pieces.
    """
    from smolmoe.inference.chat import chat as start

    return start(model, **options)


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
