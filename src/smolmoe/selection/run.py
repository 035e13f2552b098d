"""Choose rows to train on: the rows are read once to score them, and again to write the chosen ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.contents import check_no_others
from smolmoe.core.devices import pick_device
from smolmoe.core.files import expanded, write_json
from smolmoe.core.folders import whole_or_nothing
from smolmoe.core.progress import Progress, silent
from smolmoe.core.run_folder import is_ours, occupied
from smolmoe.core.vocabulary import within_vocabulary
from smolmoe.data.formats import suffix_of
from smolmoe.data.presets import EMBEDDED, PRESETS
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.data.tally import Tally, whole
from smolmoe.data.text import Document, default_documents
from smolmoe.data.tokenizer import train_tokenizer
from smolmoe.data.tokens import end_of_text
from smolmoe.errors import DataError, RequestError
from smolmoe.recipe.base import parse
from smolmoe.recipe.data import SourceRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.explain import RowScores, TextScore, extremes, part_score, score_table
from smolmoe.selection.filters import Candidate, Sieve
from smolmoe.selection.pool import Pool, scan
from smolmoe.selection.quotas import Choice, rank_correlation
from smolmoe.selection.results import INDEX, REPORT, WRITTEN, Selection, group_results, relative_length
from smolmoe.selection.rows import RowSource, open_rows
from smolmoe.selection.scores import DrawScorer, EntropyScorer, Losses, LossScorer, Scorer, token_ids
from smolmoe.selection.writing import added_columns, write_choice

LONGEST_WINDOW = 1024  # tokens that a model reads at a time


def run_select(
    recipe: SelectRecipe, out: Path, *, overwrite: bool = False, report: Progress | None = None
) -> Selection:
    """Choose rows and write them to `out`: `rows.jsonl`, `indices.json`, `report.json`, and the held-out rows.

    The rows are read twice; no more than a batch of texts is in memory. The same rows, recipe and tokenizer give the
    same choice.

    Raises:
        DataError: a source cannot be read, a row lacks a column, no candidate is left, every score is NaN or infinite,
            or the rows changed while they were read.
        SourceError, CheckpointError, HubError: tokenizer or model cannot be loaded.
        OutputError: `out` is not free, or the disk is full.
    """
    said = report or silent
    with whole_or_nothing(out, overwrite=overwrite, check=lambda: _check_free(out, overwrite)) as work:
        sources = [open_rows(source) for source in recipe.sources]
        tools = open_tools(recipe)
        pool = scan(recipe, sources, tools.scorer, said)
        choice = pool.choose(recipe)
        selection = _selection(recipe, sources, tools, pool, choice, out)
        write_choice(recipe, sources, pool, choice, work, said)
        if isinstance(recipe.tokenizer, int) and tools.tokenizer is not None:
            tools.tokenizer.save_pretrained(work / "tokenizer")
        write_json(work / REPORT, selection.to_json())
    return selection


def _check_free(out: Path, overwrite: bool) -> None:
    if is_ours(out, "selected rows", REPORT, INDEX) and not overwrite:
        raise occupied(out, "a selection already", "Use another, or `overwrite=True`.")
    check_no_others(out, *WRITTEN, field="out", value=str(out))


# -- tokenizers, models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tools:
    """The scorer of the rows.

    Attributes:
        scorer: of the recipe.
        tokenizer: None if nothing is tokenised.
        model: hash of the model whose loss is the score.
    """

    scorer: Scorer
    tokenizer: Any | None
    model: str | None = None


def names_rows(data: str) -> bool:
    """Whether the argument means rows: a preset, a name that ends like a file's (existing or not), or a path."""
    if data in {*PRESETS, EMBEDDED} or (suffix_of(data) is not None and not any(map(str.isspace, data))):
        return True
    try:
        return bool(data.strip()) and expanded(data).exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, or not one
        return False


def open_tools(recipe: SelectRecipe) -> Tools:
    """Tokenizer, model and scorer of a recipe.

    Raises:
        SourceError, CheckpointError, HubError: tokenizer or model cannot be loaded.
    """
    tokenizer = _tokenizer(recipe)
    if recipe.score == "random":
        return Tools(DrawScorer(tokenizer, recipe.seed), tokenizer)
    if recipe.score == "entropy":
        weights = (recipe.text_weight, recipe.prompt_weight)
        return Tools(EntropyScorer(tokenizer, weights, plain=recipe.plain), tokenizer)
    losses, model = model_losses(str(recipe.model), tokenizer, recipe.device)
    return Tools(LossScorer(tokenizer, losses), tokenizer, model)


def _tokenizer(recipe: SelectRecipe) -> Any | None:
    if isinstance(recipe.tokenizer, int):
        return _learned(recipe, recipe.tokenizer)
    return find_tokenizer(recipe.tokenizer, recipe.model)


def find_tokenizer(name: str | None, model: str | None) -> Any | None:
    """The tokenizer of that name, or the model's; None if neither is named.

    Raises:
        SourceError: the folder has none; HubError: neither a folder nor a hub id.
    """
    from smolmoe.moe import loading

    if name is None and model is None:
        return None
    return loading.find_tokenizer(name if name is not None else str(open_checkpoint(str(model), field="model").folder))


def _learned(recipe: SelectRecipe, vocabulary: int) -> Any:
    """A tokenizer learned from the beginning of the candidate rows."""
    sieve = Sieve(recipe)

    def documents() -> Iterator[Document]:
        for row in chain.from_iterable(open_rows(source, quiet=True).rows() for source in recipe.sources):
            text = row.string(row.text) or ""
            if not sieve.is_apart(text):
                yield whole(Document(text), Tally(), row.place)

    return train_tokenizer(documents(), vocabulary)


def model_losses(name: str, tokenizer: Any, device: str) -> tuple[Losses, str]:
    """A function for the loss of texts under a model, in nats per token, read from their start; and the model's hash.

    A text longer than the model's positions, or 1,024 tokens, is read in windows of that length.

    Raises:
        SourceError, CheckpointError, HubError: the model cannot be loaded.
    """
    from smolmoe.evaluation.held_out import cut_windows, document_losses
    from smolmoe.moe.loading import load_model

    checkpoint = open_checkpoint(name, field="model")
    model = load_model(checkpoint.folder, device=pick_device(device))
    within_vocabulary(tokenizer, model.config.get_text_config().vocab_size)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST_WINDOW
    length, start = min(LONGEST_WINDOW, positions), end_of_text(tokenizer)

    def losses(token_ids: Sequence[Sequence[int]]) -> list[float]:
        found = [float("nan")] * len(token_ids)
        there = [index for index, ids in enumerate(token_ids) if ids]
        whole = sum(map(len, token_ids)) + 1
        texts = [token_ids[index] for index in there]
        windows = cut_windows(texts, [""] * len(texts), length=length, start=start, budget=whole, per_document=whole)
        measured = document_losses(model, windows)
        for index, nll, tokens in zip(there, measured.nll, measured.tokens, strict=True):
            found[index] = nll / tokens
        return found

    return losses, fingerprint(checkpoint)


# -- the report ------------------------------------------------------------------------------------------------------


def _selection(
    recipe: SelectRecipe, sources: Sequence[RowSource], tools: Tools, pool: Pool, choice: Choice, out: Path
) -> Selection:
    chosen = choice.chosen
    total = int(pool.costs(recipe)[chosen].sum())
    return Selection(
        out=out,
        recipe=recipe.model_dump(mode="json"),
        inputs=tuple(source.to_json() for source in sources),
        tokenizer=None if tools.tokenizer is None else tokenizer_hash(tools.tokenizer),
        model=tools.model,
        columns={"text": _text_column(recipe.sources[0]), **added_columns(pool)},
        read=pool.read,
        dropped=pool.dropped,
        held_out=pool.held_out,
        rows=int(chosen.sum()),
        tokens=int(pool.sizes[chosen].sum()) if pool.counts_tokens else None,
        total=total,
        shortfall=recipe.budget - total,
        length_correlation=rank_correlation(pool.scores, pool.sizes.astype(np.float64)),
        chosen_length=relative_length(pool, choice),
        groups=group_results(recipe, pool, choice),
    )


def _text_column(source: SourceRecipe) -> str:
    return source.text if source.preset is None else "text"


# -- scores, explained -----------------------------------------------------------------------------------------------


def score_text(
    text: str,
    *,
    prompt: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    against: SelectRecipe | None = None,
    weights: tuple[float, float] = (0.8, 0.2),
    top: int = 8,
    device: str = "auto",
) -> TextScore:
    """The scores of one text, explained.

    Args:
        tokenizer: folder or hub id; by default the model's.
        model: adds the loss under this model.
        against: rows to compare with; by default some text of this Python installation.
        weights: of text and prompt.
        top: number of most frequent tokens to show.

    Raises:
        RequestError: neither tokenizer nor model is named.
        DataError: the text has no tokens, or the rows cannot be read.
        SourceError, CheckpointError, HubError: tokenizer or model cannot be loaded.
    """
    found = find_tokenizer(tokenizer, model)
    if found is None:
        raise RequestError("a tokenizer is needed.", field="tokenizer", value=None, fix="Name a tokenizer or a model.")
    scorer = EntropyScorer(found, weights, plain=False)
    if against is None:
        documents = default_documents()
        scorer.add([Candidate(document.text, None) for document in documents], [0] * len(documents))
    else:
        scan(against, [open_rows(source) for source in against.sources], scorer, silent)
    ids, asked = (token_ids(found, [part or ""])[0] for part in (text, prompt))
    if not ids:
        raise DataError("the text contains no tokens.", field="text", value=text)

    def decode(token: int) -> str:
        return str(found.decode([token]))

    part = part_score(ids, scorer.texts, decode, top)
    of_prompt = part_score(asked, scorer.prompts if len(scorer.prompts) else scorer.texts, decode, top)
    beside = part if prompt is None else of_prompt
    return TextScore(
        text=part,
        prompt=None if prompt is None else of_prompt,
        text_weight=weights[0],
        prompt_weight=weights[1],
        against="text of this Python installation" if against is None else _label(against),
        score=weights[0] * part.normalised + weights[1] * beside.normalised,
        plain=weights[0] * part.bits + weights[1] * beside.bits,
        loss=None if model is None else model_losses(model, found, device)[0]([ids])[0],
    )


def score_rows(recipe: SelectRecipe, *, top: int = 5, report: Progress | None = None) -> RowScores:
    """The rows of a file under the entropy scores and, if the recipe names a model, under its loss.

    Args:
        recipe: sources, groups, tokenizer or model, weights; rows that it filters out are not scored.
        top: number of rows to show at each end.

    Raises:
        DataError, SourceError, CheckpointError, HubError: as `run_select` raises them.
    """
    said = report or silent
    forms: dict[str, dict[str, Any]] = {"entropy": {"plain": False}, "entropy, plain": {"plain": True}}
    if recipe.model is not None:
        forms["loss"] = {"score": "perplexity", "plain": False, "tokenizer": None}
    sources = [open_rows(source) for source in recipe.sources]
    pools = {}
    for name, changes in forms.items():
        asked = parse(SelectRecipe, recipe.model_dump() | {"score": "entropy"} | changes)
        pools[name] = scan(asked, sources, open_tools(asked).scorer, said)
    wanted = set[int]().union(*(extremes(pool, top) for pool in pools.values()))
    rows = chain.from_iterable(source.rows() for source in sources)
    shown = {place: row for place, row in enumerate(rows) if place in wanted}
    first = pools["entropy"]
    tables = {name: score_table(pool, top, shown) for name, pool in pools.items()}
    return RowScores(len(first.scores), int(first.sizes.sum()), first.dropped, tables)


def _label(recipe: SelectRecipe) -> str:
    return ", ".join(source.preset or str(source.path) for source in recipe.sources)
