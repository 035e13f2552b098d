"""Answers of a model to prompts, each with the expert that leads on its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.generate import GenerateRecipe


def run(recipe: GenerateRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.inference.expert_choice import route
    from smolmoe.inference.generate import generate_all
    from smolmoe.inference.sampling import answering_tokenizer

    report("Answering", 0, len(recipe.prompts))
    tokenizer = answering_tokenizer(Path(recipe.model))
    chat = bool(tokenizer.chat_template) if recipe.chat is None else recipe.chat
    given = [as_message(tokenizer, prompt) if chat else prompt for prompt in recipe.prompts]
    found = generate_all(
        recipe.model, given, max_new_tokens=recipe.new_tokens, temperature=0.0, batch_size=1, device=recipe.device
    )
    answers = []
    for prompt, generation in zip(recipe.prompts, found, strict=True):
        text, between = generation.texts[0], "\n" if chat else ""
        choice = route(recipe.model, f"{prompt}{between}{text}")
        led = {"expert": choice.name, "share": choice.confidence}
        answers.append({"prompt": prompt, "text": text, **led, "seconds": generation.seconds})
        report("Answering", len(answers), len(recipe.prompts))
    return {"chat": chat, "answers": answers}


def as_message(tokenizer: Any, prompt: str) -> str:
    """A user's message in the tokenizer's chat format, up to the answer; without what the tokenizer itself adds."""
    from smolmoe.data.prompts import check_chat

    check_chat(tokenizer)
    messages = [{"role": "user", "content": prompt}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    start = tokenizer.bos_token
    adds_start = start is not None and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(start) if adds_start else text


def row(result: Values, folder: Path) -> Row:
    return Row(found=f"{len(result['answers'])} answers", text="\n\n".join(map(_shown, result["answers"])))


def _shown(answer: Values) -> str:
    lines = [f"> {answer['prompt'].strip()}", *answer["text"].strip().splitlines()]
    return "\n".join([*lines, f"[leads: {answer['expert']}, {answer['share']:.0%}]"])


STAGE = Stage(GenerateRecipe, run, row, origin=lambda recipe: recipe.model)
