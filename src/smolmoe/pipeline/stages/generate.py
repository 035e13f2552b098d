"""Answers of a model to prompts, each with the expert that leads on its text."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.generation import GenerateRecipe


def run(recipe: GenerateRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.inference.expert_choice import route
    from smolmoe.inference.generate import generate_all

    report("Answering", 0, len(recipe.prompts))
    options = recipe.model_dump(exclude={"model", "prompts", "chat"})
    found = generate_all(recipe.model, recipe.prompts, chat=recipe.chat, batch_size=1, **options)
    answers = []
    for generation in found:
        prompt, text = generation.prompt, generation.texts[0]
        choice = route(recipe.model, f"{prompt}\n{text}" if generation.format == "chat" else f"{prompt}{text}")
        led = {"expert": choice.name, "share": choice.confidence}
        answers.append({"prompt": prompt, "text": text, **led, "seconds": generation.seconds})
        report("Answering", len(answers), len(recipe.prompts))
    return {"chat": found[0].format == "chat", "answers": answers}


def row(result: Values, folder: Path) -> Row:
    return Row(found=f"{len(result['answers'])} answers", text="\n\n".join(map(_shown, result["answers"])))


def _shown(answer: Values) -> str:
    lines = [f"> {answer['prompt'].strip()}", *answer["text"].strip().splitlines()]
    return "\n".join([*lines, f"[leads: {answer['expert']}, {answer['share']:.0%}]"])


STAGE = Stage(GenerateRecipe, run, row, origin=lambda recipe: recipe.model)
