"""data select, data score: which rows to train on, and what the scores see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.cli.output import Json, print_json, print_rows, progress, quiet_libraries, table
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.selection.explain import PartScore, RowScores, ScoreTable, TextScore
    from smolmoe.selection.results import GroupResult, Selection

By = Annotated[str, typer.Option(help="Columns whose values make the groups, with commas between them.")]
Text = Annotated[str, typer.Option(help="Column that holds the text.")]
PromptColumn = Annotated[
    str | None, typer.Option(help="Column of what the text answers.  [default: prompt, where rows have one]")
]
TextWeight = Annotated[float, typer.Option(help="Entropy: weight of the text.")]
PromptWeight = Annotated[float, typer.Option(help="Entropy: weight of the prompt.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="Folder or hub id, or a number to learn one of that size.  [default: the model's]")
]
Model = Annotated[str | None, typer.Option(help="Folder or hub id of the model whose loss is the perplexity score.")]
Device = Annotated[str, typer.Option(help="Where the model computes.")]


def select(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file or folder of rows, a preset, a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for rows.jsonl, indices.json and report.json.")],
    budget: Annotated[int, typer.Option(help="Rows or tokens to choose.")] = 1000,
    by: By = "",
    score: Annotated[str, typer.Option(help="entropy, perplexity or random.")] = "entropy",
    quota: Annotated[str, typer.Option(help="even_then_fill or proportional.")] = "even_then_fill",
    prefer: Annotated[
        str | None,
        typer.Option(help="high, middle or low scores.  [default: high for entropy, middle for perplexity]"),
    ] = None,
    tokenizer: Tokenizer = None,
    model: Model = None,
    text: Text = "text",
    prompt_column: PromptColumn = None,
    text_weight: TextWeight = 0.8,
    prompt_weight: PromptWeight = 0.2,
    plain: Annotated[bool, typer.Option("--plain", help="Entropy in bits, whatever the length.")] = False,
    min_characters: Annotated[int, typer.Option(help="Shorter texts are left out.")] = 50,
    max_characters: Annotated[int | None, typer.Option(help="Longer texts are left out.")] = None,
    min_prompt_characters: Annotated[int, typer.Option(help="Rows with a shorter prompt are left out.")] = 10,
    near_duplicates: Annotated[
        float, typer.Option(help="Similarity from which a text repeats an earlier one; 0 looks for none.")
    ] = 0.8,
    unit: Annotated[str, typer.Option(help="What the budget counts: rows or tokens.")] = "rows",
    held_out: Annotated[float, typer.Option(help="Share of the documents to keep out and write apart.")] = 0.0,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a choice that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Choose rows to train on, by score, in groups, without repetitions."""
    quiet_libraries()
    from smolmoe.selection.run import run_select

    recipe = _recipe(
        data,
        text,
        budget=budget,
        by=by,
        score=score,
        quota=quota,
        prefer=prefer,
        tokenizer=tokenizer,
        model=model,
        prompt_column=prompt_column,
        text_weight=text_weight,
        prompt_weight=prompt_weight,
        plain=plain,
        min_characters=min_characters,
        max_characters=max_characters,
        min_prompt_characters=min_prompt_characters,
        near_duplicates=near_duplicates,
        unit=unit,
        held_out=held_out,
        device=device,
        seed=seed,
    )
    with progress(not as_json) as report:
        selection = run_select(recipe, out, overwrite=overwrite, report=report)
    if as_json:
        print_json(selection.to_json())
    else:
        show_selection(selection)


def _recipe(data: str, text: str, **values: Any) -> Any:
    """The SelectRecipe of these options, data being a preset's name or a path."""
    from smolmoe.data.presets import EMBEDDED, PRESETS
    from smolmoe.recipe.base import parse
    from smolmoe.recipe.select import SelectRecipe

    source = {"preset": data} if data in {*PRESETS, EMBEDDED} else {"path": data, "text": text}
    values["by"] = tuple(name.strip() for name in values["by"].split(",") if name.strip())
    if (tokenizer := values.get("tokenizer")) is not None and tokenizer.isdigit():
        values["tokenizer"] = int(tokenizer)
    return parse(SelectRecipe, {"sources": [source], **values})


def show_selection(selection: Selection) -> None:
    """What was chosen, group by group; what was left out; what is lacking."""
    unit = selection.recipe["unit"]
    tokens = "" if selection.tokens is None else f", {units.tokens(selection.tokens)} tokens"
    print(f"{selection.path}: {selection.rows} of {selection.read} rows{tokens}")
    said: list[tuple[str, object]] = [("score", _described(selection.recipe))]
    said += [("left out", f"{rows} {reason}") for reason, rows in selection.dropped.items()]
    if selection.held_out:
        said.append(("held out", f"{selection.held_out} documents, in {selection.out / 'held-out.jsonl'}"))
    said.append(("length", f"rank correlation with the score {selection.length_correlation:+.2f}"))
    said.append(("", f"the chosen are {selection.chosen_length:.2f} times as long as their groups' mean"))
    if selection.shortfall:
        said.append(("shortfall", f"{selection.shortfall} {unit} of the {selection.recipe['budget']} asked"))
    said += [("empty group", label) for label in selection.empty_groups]
    print_rows(said)
    if selection.groups:
        columns = ["group", "supply", "quota", "chosen", "for others", "lacking", "median score", "of the chosen"]
        table(f"Groups, in {unit}", columns, [_group_row(group) for group in selection.groups])


def _described(recipe: Any) -> str:
    if recipe["score"] == "random":
        return f"random, seed {recipe['seed']}"
    form = {"entropy": "entropy in bits" if recipe["plain"] else "entropy, deviations from texts as long"}
    prefer = recipe["prefer"] or ("middle" if recipe["score"] == "perplexity" else "high")
    return f"{form.get(recipe['score'], 'loss, nats a token')}; {prefer} preferred"


def _group_row(group: GroupResult) -> list[object]:
    medians = ["-" if scores is None else f"{scores['0.5']:.3f}" for scores in (group.scores, group.chosen_scores)]
    return [group.label, group.supply, group.quota, group.chosen, group.filled, group.shortfall, *medians]


def score(
    data: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A text, or a file, folder, preset of rows.")],
    prompt: Annotated[str | None, typer.Option(help="TEXT: what it answers.")] = None,
    against: Annotated[
        str | None, typer.Option(help="TEXT: rows to compare it with.  [default: text of this Python installation]")
    ] = None,
    by: By = "",
    tokenizer: Tokenizer = None,
    model: Model = None,
    text: Text = "text",
    prompt_column: PromptColumn = None,
    text_weight: TextWeight = 0.8,
    prompt_weight: PromptWeight = 0.2,
    top: Annotated[int, typer.Option(help="Frequent tokens, or rows at each end, to show.")] = 8,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Explain what the scores see in a text, or which rows of a file they put first and last."""
    quiet_libraries()
    from smolmoe.selection.run import score_rows, score_text

    whole = {"min_characters": 0, "min_prompt_characters": 0, "near_duplicates": 0.0, "by": by}
    shared = {"tokenizer": tokenizer, "prompt_column": prompt_column}
    weights = {"text_weight": text_weight, "prompt_weight": prompt_weight}
    if _is_rows(data):
        recipe = _recipe(data, text, model=model, device=device, **whole, **shared, **weights)
        with progress(not as_json) as report:
            rows = score_rows(recipe, top=top, report=report)
        print_json(rows.to_json()) if as_json else show_rows(rows)
        return
    recipe = None if against is None else _recipe(against, text, model=model, **whole, **shared, **weights)
    found = score_text(
        data,
        prompt=prompt,
        tokenizer=tokenizer,
        model=model,
        against=recipe,
        weights=(text_weight, prompt_weight),
        top=top,
        device=device,
    )
    print_json(found.to_json()) if as_json else show_text(found)


def _is_rows(data: str) -> bool:
    """A name without spaces that ends like a file is meant as one, whether or not it is there."""
    from smolmoe.core.files import expanded
    from smolmoe.data.formats import suffix_of
    from smolmoe.data.presets import EMBEDDED, PRESETS

    if data in {*PRESETS, EMBEDDED} or (suffix_of(data) is not None and not any(map(str.isspace, data))):
        return True
    try:
        return bool(data.strip()) and expanded(data).exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, or not one
        return False


def show_text(found: TextScore) -> None:
    print(f"score {found.score:+.3f} ({found.plain:.3f} bits), against {found.against}")
    if found.perplexity is not None:
        print(f"perplexity {found.perplexity:.2f} (loss {found.loss:.4f} nats a token)")
    parts = [("text", found.text, found.text_weight)]
    if found.prompt is not None:
        parts.append(("prompt", found.prompt, found.prompt_weight))
    for name, part, weight in parts:
        _show_part(name, part, weight if len(parts) > 1 else found.text_weight + found.prompt_weight)


def _show_part(name: str, part: PartScore, weight: float) -> None:
    print(f"{name}, weight {weight:g}")
    print_rows(
        [
            ("tokens", f"{part.tokens}, {part.distinct} distinct"),
            ("entropy", f"{part.bits:.3f} bits, of {part.most:.3f} if no token came twice"),
            (
                "texts as long",
                f"{part.expected:.3f} ± {part.deviation:.3f} bits, of {part.shortest} to {part.longest} tokens",
            ),
            ("normalised", f"{part.normalised:+.3f} deviations"),
        ]
    )
    rows = [[repr(f.token), f.count, f"{f.share:.1%}", f"{f.share_of_entropy:.1%}"] for f in part.frequent]
    table("Most frequent tokens", ["token", "count", "of the tokens", "of the entropy"], rows)


def show_rows(found: RowScores) -> None:
    print(f"{found.rows} rows, {units.tokens(found.tokens)} tokens")
    print_rows([("left out", f"{rows} {reason}") for reason, rows in found.dropped.items()])
    for name, scores in found.scores.items():
        _show_scores(name, scores)


def _show_scores(name: str, scores: ScoreTable) -> None:
    quantiles = ", ".join(f"{float(share):.0%} {value:.3f}" for share, value in scores.quantiles.items())
    print(f"{name}: quantiles {quantiles}; rank correlation with length {scores.length_correlation:+.2f}")
    for title, rows in (("highest", scores.highest), ("lowest", scores.lowest)):
        cells = [[f"{row.score:.3f}", row.tokens, row.group, row.place, row.begins] for row in rows]
        table(f"{name}: {title}", ["score", "tokens", "group", "where", "begins"], cells)
