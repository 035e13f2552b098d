"""Intervals and tests on numbers whose answer is known, what two models say beside each other, and the sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import dense_llama, random_moe, tiny_tokenizer

from smolmoe.data.text import Document
from smolmoe.evaluation.compare.leaks import LeakSearch
from smolmoe.evaluation.compare.lineage import TrainingText
from smolmoe.evaluation.compare.losses import read_held_out
from smolmoe.evaluation.compare.statistics import difference, estimate, over_seeds, swap_test
from smolmoe.evaluation.compare.text import Limits, judge_by, windows_for
from smolmoe.evaluation.compare.verdict import verdict, warnings, winners
from smolmoe.evaluation.held_out import cut_windows, document_losses
from smolmoe.recipe.data import DataRecipe
from smolmoe.results.comparison import (
    CheckpointResult,
    Difference,
    Estimate,
    Leak,
    ModelResult,
    Pair,
    Score,
    Span,
    TextFacts,
    Training,
)


def losses(seed: int, shift: float = 0.0, documents: int = 40, seeds: int = 1) -> Any:
    """Sums over documents of 10 tokens: a common part, the model's shift, noise of document and seed."""
    common = np.random.default_rng(0).normal(3, 1, documents)
    noise = np.random.default_rng(seed).normal(0, 0.02, (seeds, documents))
    return 10 * (common + shift + noise)


def test_a_difference_that_is_there_is_found_though_documents_differ_more() -> None:
    weights = [10] * 40
    found = difference(losses(1, shift=-0.05), losses(2), weights)
    assert found.value == pytest.approx(-0.05, abs=0.01)
    assert found.documents.low < -0.05 < found.documents.high < 0
    assert found.p < 0.001
    assert found.is_decided
    alone = estimate(losses(1, shift=-0.05), weights).documents
    assert alone.high - alone.low > 5 * (found.documents.high - found.documents.low)
    turned = found.turned()
    assert (turned.value, turned.documents.low) == (-found.value, -found.documents.high)


def test_equal_models_are_seldom_told_apart() -> None:
    found = [difference(losses(2 * n + 1, documents=25), losses(2 * n + 2, documents=25), [10] * 25) for n in range(60)]
    decided = sum(one.is_decided for one in found)
    assert decided <= 8  # 5% of 60 are 3
    p = sorted(one.p for one in found)
    assert 0.3 < p[30] < 0.7  # uniform


def test_the_interval_over_documents_covers_the_truth() -> None:
    covered = 0
    for trial in range(100):
        values = np.random.default_rng(trial).normal(3, 1, (1, 40))
        span = estimate(values, [1] * 40).documents
        covered += span.low < 3 < span.high
    assert 88 <= covered <= 99


def test_seeds_that_disagree_leave_it_open() -> None:
    weights = [10] * 40
    first = losses(1, shift=-0.01, seeds=3) + np.array([[-3.0], [0.0], [3.0]])
    found = difference(first, losses(2, seeds=3), weights)
    assert found.documents.high < 0
    assert found.seeds is not None
    assert found.seeds.low < 0 < found.seeds.high
    assert not found.is_decided
    one_beside = difference(first, losses(2), weights)
    assert one_beside.seeds is not None
    assert difference(losses(1), losses(2), weights).seeds is None


def test_students_t_over_seeds() -> None:
    span = over_seeds([1.0, 2.0, 3.0])
    assert span is not None
    # 4.3027 standard errors of 1 / sqrt(3), from a table of Student's t.
    assert (span.low, span.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert over_seeds([1.0]) is None


def test_the_swap_test_of_few_documents() -> None:
    # All three the same way: 2 of the 8 ways to swap give as much.
    assert swap_test(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8, abs=0.02)
    assert swap_test(np.zeros(5)) == 1.0


def held_out(documents: int = 5) -> Any:
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 300, size=int(size)).tolist() for size in rng.integers(3, 70, documents)]
    return cut_windows(ids, ["a"] * documents, length=32, start=0, budget=10_000, per_document=10_000)


def test_losses_are_those_of_training_and_the_agreement_is_exact() -> None:
    windows, base, model = held_out(), dense_llama(), random_moe("mixtral")
    found = read_held_out(model, windows, base=base)
    expected = document_losses(model, windows)
    assert found.tokens == expected.tokens
    assert found.nll == pytest.approx(expected.nll, rel=1e-5)
    assert found.same is not None
    assert found.kl is not None
    same, kl = [0.0] * 5, [0.0] * 5
    for window, owner in zip(windows.windows, windows.owners, strict=True):
        inputs = torch.tensor([window[:-1]])
        with torch.inference_mode():
            p = base(input_ids=inputs).logits.double().softmax(dim=-1)
            q = model(input_ids=inputs).logits.double().softmax(dim=-1)
        same[owner] += int((p.argmax(dim=-1) == q.argmax(dim=-1)).sum())
        kl[owner] += float((p * (p / q).log()).sum())
    assert found.same == pytest.approx(same)
    assert found.kl == pytest.approx(kl, rel=1e-4)
    alone = read_held_out(model, windows)
    assert (alone.same, alone.kl) == (None, None)


def test_a_padded_vocabulary_is_compared_on_what_both_have() -> None:
    base = dense_llama()
    padded = dense_llama()
    padded.resize_token_embeddings(320, mean_resizing=False)
    for one, other in ((padded, base), (base, padded)):
        found = read_held_out(one, held_out(), base=other)
        assert found.kl is not None
        assert found.same == pytest.approx(found.tokens, rel=0.05)
        assert sum(found.kl) == pytest.approx(0, abs=1e-3)


def documents(*texts: str) -> list[Document]:
    return [Document(text, "prose") for text in texts]


def test_long_documents_are_cut_where_the_base_counts_them() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["one two three four five six", "seven"]
    text = judge_by(documents(*texts), tokenizer, Limits(1000, 6, 32), "data")
    assert text.ended == (False, True)
    assert len(text.base_ids[0]) == 6
    assert texts[0].startswith(text.texts[0])
    assert text.texts[1] == "seven"
    assert text.base_ids[1][-1] == tokenizer.eos_token_id
    assert text.bytes == tuple(len(one) for one in text.texts)
    own, other = (windows_for(text, tokenizer, 32, is_base=is_base) for is_base in (True, False))
    assert own == other  # encoded anew, the text is the same tokens, and its end is predicted where it is its end


def test_each_domain_gets_its_tokens_and_no_more() -> None:
    many = [Document(f"{n} and {n}", domain) for n in range(50) for domain in ("a", "b")]
    text = judge_by(many, tiny_tokenizer(), Limits(30, 100, 32), "data")
    facts = text.facts("data", "domain", 32)
    assert facts.documents["a"] == facts.documents["b"] < 50
    longest = max(map(len, text.base_ids))
    assert all(30 <= tokens < 30 + longest for tokens in facts.tokens.values())


def test_leaks_by_the_rules_of_training(tmp_path: Path) -> None:
    texts = [f"text number {n}" for n in range(40)]
    judged = judge_by(documents(*texts), tiny_tokenizer(), Limits(10_000, 100, 32), "data")
    (tmp_path / "train.txt").write_text("\n\n".join(texts))
    (tmp_path / "held.txt").write_text("\n\n".join(texts[:10]))

    def search(**data: Any) -> Leak:
        recipe = DataRecipe.model_validate({"sources": [{"path": "train.txt"}], **data})
        return LeakSearch(judged).leak([TrainingText("run", recipe, tmp_path / "run" / "model")])

    assert search(validation=[{"path": "held.txt"}]).documents == 30
    assert search(held_out=1e-6).documents == 40
    assert 10 < search(held_out=0.5).documents < 30
    assert search(held_out=1e-6, sources=[{"path": "gone.txt"}]).unchecked == ("gone.txt",)
    assert LeakSearch(judged).leak(None).unchecked is None
    assert LeakSearch(judged).leak([TrainingText("pairs of x", None, tmp_path)]).unchecked == ("pairs of x",)


# -- sentences -------------------------------------------------------------------------------------------------------


def at(value: float) -> Estimate:
    return Estimate(value, Span(value - 0.1, value + 0.1))


def model(name: str, kind: str, loss: float, *, tokens: int | None = None, flops: float = 1e12, **more: Any) -> Any:
    training = None if tokens is None else Training(tokens, flops, "base", ("base", name))
    checkpoint = CheckpointResult(f"runs/{name}", "0", 0, loss, {}, training, Leak(0, 0, ()))
    experts = 8 if kind == "moe" else None
    times = 4 if kind == "moe" else 1
    return ModelResult(
        name=name,
        kind=kind,
        class_name="Llama",
        experts=experts,
        top_k=2 if experts else None,
        tokenizer="t",
        parameters=1_000_000 * times,
        active=1_000_000,
        disk=4_000_000 * times,
        flops=2e6,
        loss=at(loss),
        by_domain={},
        perplexity=at(loss),
        perplexity_by_domain={},
        bits_per_byte=at(loss),
        bits_per_byte_by_domain={},
        agreement=None,
        speed=None,
        tasks=more.get("tasks", {}),
        checkpoints=(checkpoint,),
    )


def pair(first: Any, second: Any, width: float = 0.01, p: float = 0.0001, seeds: Span | None = None) -> Pair:
    gap = first.loss.value - second.loss.value
    return Pair(first.name, second.name, Difference(gap, Span(gap - width, gap + width), p, seeds), {})


def three(dense_loss: float, moe_loss: float, **options: Any) -> tuple[list[Any], list[Pair]]:
    base = model("base", "dense", 4.0)
    dense = model("dense", "dense", dense_loss, tokens=1_000_000, flops=1e12)
    moe = model("moe", "moe", moe_loss, tokens=1_000_000, flops=1.5e12)
    return [base, dense, moe], [pair(dense, base), pair(moe, base), pair(moe, dense, **options)]


def test_the_mixture_wins() -> None:
    models, pairs = three(3.9, 3.8)
    assert verdict(models, pairs, "token")[0] == (
        "moe beats dense: its held-out loss is 0.1000 nats per token lower (3.8000 against 3.9000; difference in 95% "
        "over documents -0.1100 to -0.0900), after equal tokens and 1.50 times the FLOPs of training "
        "(1 M tokens since base)."
    )
    assert winners(models, pairs)["loss"] == ("moe",)


def test_the_mixture_loses() -> None:
    models, pairs = three(3.8, 3.9)
    assert verdict(models, pairs, "token")[0].startswith(
        "moe loses to dense: its held-out loss is 0.1000 nats per token higher"
    )
    assert winners(models, pairs)["loss"] == ("dense",)


def test_the_order_of_the_models_does_not_matter() -> None:
    (base, dense, moe), pairs = three(3.8, 3.9)
    turned = [pairs[1], pairs[0], pair(dense, moe)]
    assert verdict([base, moe, dense], turned, "token")[0] == verdict([base, dense, moe], pairs, "token")[0]


@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        ({"width": 0.2}, "but the interval over documents includes 0"),
        ({"seeds": Span(-0.3, 0.1)}, "but the interval over 1 seeds includes 0"),
        ({"p": 0.2}, "but swapping the two in random documents gives as much with p = 0.2"),
    ],
)
def test_nobody_wins_where_an_interval_or_the_test_leaves_it_open(options: dict[str, Any], doubt: str) -> None:
    models, pairs = three(3.9, 3.8, **options)
    first = verdict(models, pairs, "token")[0]
    assert first.startswith("moe and dense: no difference seen. The held-out loss of moe is")
    assert doubt in first
    assert winners(models, pairs)["loss"] == ("dense", "moe")


@pytest.mark.parametrize("over", [1, 4, 5])
def test_few_documents_decide_nothing(over: int) -> None:
    models, pairs = three(3.8, 3.9)
    few = [replace(one, loss=replace(one.loss, over=over)) for one in pairs]
    first = verdict(models, few, "token")[0]
    assert first.startswith("moe and dense: no difference seen.")
    assert f"{over} documents are too few for a finding (at least 6)" in first
    assert winners(models, few)["loss"] == ("base", "dense", "moe")
    assert not any(one.loss.is_decided for one in few)


def test_costs_and_scores() -> None:
    models, pairs = three(3.9, 3.8)
    for index, value in enumerate((0.5, 0.52, 0.9)):
        models[index] = replace(models[index], tasks={"sums": {"acc": Score(value, 0.05, True, (value,))}})
    found = winners(models, pairs)
    assert found["parameters"] == found["disk"] == ("base", "dense")
    assert found["active parameters"] == ("base", "dense", "moe")
    assert found["sums: acc"] == ("moe",)
    said = verdict(models, pairs, "token")
    assert (
        "Compared with dense, moe has 4.00 times the parameters, as many active parameters, "
        "as many FLOPs per token, 4.00 times" in said[1]
    )
    assert said[-1] == "Task sums: acc: moe ahead."


def test_warnings() -> None:
    models, _ = three(3.9, 3.8)
    leaked = replace(models[1].checkpoints[0], leak=Leak(3, 50, None))
    models[1] = replace(models[1], checkpoints=(leaked,))
    facts = TextFacts("data", None, {"text": 10}, {"text": 100}, {"text": 400}, 32, "0")
    said = warnings(models, facts, "byte")
    assert said[0].startswith("dense (runs/dense) was trained on 3 of the 10 documents (50.0% of the tokens)")
    assert said[1].startswith("The training data of dense is not on record")
    assert any("tokenizers differ" in one for one in said)
    assert any("Single seed per model" in one for one in said)
    assert any("Few documents (text 10)" in one for one in said)
