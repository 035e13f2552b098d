"""The text of a run: its tokenizer, its blocks in their order, and the held-out text."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Subset

from smolmoe.core.progress import Progress
from smolmoe.data.blocks import Blocks, whole_windows
from smolmoe.data.corpus import TokenCorpus, load_corpus
from smolmoe.data.embedded import is_held_out
from smolmoe.data.sources import open_source
from smolmoe.data.tally import Tally
from smolmoe.data.tokenizer import train_tokenizer
from smolmoe.errors import RequestError
from smolmoe.evaluation.held_out import HeldOut, cut_windows
from smolmoe.recipe import TrainRecipe
from smolmoe.training.estimate import blocks_a_step


def learn_tokenizer(recipe: TrainRecipe, vocabulary: int, report: Progress) -> Any:
    """A tokenizer of this size, learned from the training documents."""
    data = recipe.data
    share = 0.0 if data.validation else data.held_out
    sources = [open_source(source, quiet=True) for source in data.sources]  # the corpus logs what they skip
    documents = chain.from_iterable(source.documents(Tally()) for source in sources)
    learned_from = (document for document in documents if not is_held_out(document.text, share))
    name = "Learning a tokenizer"
    return train_tokenizer(learned_from, vocabulary, report=lambda done, total: report(name, done, total))


def read_corpus(recipe: TrainRecipe, tokenizer: Any, report: Progress) -> TokenCorpus:
    """The tokenised documents; streamed sources are read as far as the run needs."""
    steps = int(recipe.trainer.get("max_steps", -1))
    blocks = whole_windows(recipe.data.skip + steps * blocks_a_step(recipe))
    tokens = blocks * recipe.data.length if steps > 0 else None
    return load_corpus(recipe.data, tokenizer, tokens=tokens, report=report)


def held_out_windows(recipe: TrainRecipe, corpus: TokenCorpus, tokenizer: Any) -> HeldOut:
    """The windows of held-out text that the run is evaluated on."""
    evaluation, store = recipe.evaluation, corpus.validation
    return cut_windows(
        [store.document(i).tolist() for i in range(len(store))],
        [corpus.domains[i] for i in store.domain_ids],
        length=recipe.data.length,
        start=tokenizer.eos_token_id,
        budget=evaluation.tokens,
        per_document=evaluation.per_document,
    )


def count_steps(recipe: TrainRecipe, corpus: TokenCorpus) -> int:
    """Steps of the run, by max_steps or by epochs of its text.

    Raises:
        RequestError: the text does not fill one.
    """
    steps = int(recipe.trainer.get("max_steps", -1))
    if steps < 0:
        tokens = float(recipe.trainer.get("num_train_epochs", 1)) * len(corpus.train.ids)
        steps = int(tokens // (blocks_a_step(recipe) * recipe.data.length))
    if steps < 1:
        raise RequestError(
            "the text does not fill one step.",
            field="trainer.max_steps",
            value=steps,
            fix="Give more text, a smaller batch, or shorter blocks.",
        )
    return steps


def domain_shares(recipe: TrainRecipe, corpus: TokenCorpus) -> dict[str, float]:
    """Each domain's share of the tokens to train on."""
    store, weights = corpus.train, [source.weight for source in recipe.data.sources]
    of_source = np.bincount(store.source_ids, weights=store.lengths, minlength=len(weights))
    if weights[0] is None:
        of_token = np.ones(len(weights))
    else:
        of_token = np.array(weights, dtype=float) / of_source.clip(1)
    tokens = store.lengths * of_token[store.source_ids]
    total = np.bincount(store.domain_ids, weights=tokens, minlength=len(corpus.domains))
    return dict(zip(corpus.domains, (total / total.sum()).tolist(), strict=True))


def run_blocks(recipe: TrainRecipe, corpus: TokenCorpus, count: int, targets: Any = None) -> Any:
    """The run's blocks, in their order.

    Args:
        targets: a teacher's, of this text.
    """
    data = recipe.data
    weights = [source.weight for source in data.sources]
    blocks = Blocks(
        corpus.train,
        count=data.skip + count,
        length=data.length,
        seed=data.seed,
        weights=None if weights[0] is None else [float(weight) for weight in weights if weight],
        isolate=data.isolate,
        targets=targets,
    )
    return Subset(blocks, range(data.skip, data.skip + count))
