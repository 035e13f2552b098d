"""Models side by side: real small runs, their records, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VOCABULARY, dense_gpt2, dense_llama, moe_of, random_moe, save, tiny_tokenizer
from tests.training.runs import recipe, write_text

from smolmoe.errors import CheckpointError, DataError, OutputError, RequestError, SourceError
from smolmoe.evaluation.compare import speed as comparison_speed
from smolmoe.evaluation.compare.run import compare
from smolmoe.evaluation.speed import read_speed
from smolmoe.results.comparison import Comparison, Leak, Pair
from smolmoe.surgery.run import upcycle
from smolmoe.training.run import train

SEEDS = (0, 1)


@dataclass(frozen=True)
class Runs:
    """A dense model, an MoE made of it, and each trained with two seeds."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def of(self, name: str) -> list[Path]:
        return [self.folder / f"{name}-{seed}" for seed in SEEDS]

    @property
    def models(self) -> dict[str, Any]:
        return {"base": self.base, "dense": self.of("dense"), "moe": self.of("moe")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    save(dense_llama(), folder / "base")
    upcycle(folder / "base", folder / "moe", experts=4, top_k=2, verify="none")
    for seed in SEEDS:
        for name, model in (("dense", "base"), ("moe", "moe")):
            values = recipe(folder, folder / model, seed=seed, out=str(folder / f"{name}-{seed}"))
            values["data"]["seed"] = seed
            train(values | {"evaluation": {"tokens": 300, "per_document": 20}})
    return Runs(folder)


@pytest.fixture(scope="module")
def found(runs: Runs) -> Comparison:
    return compare(runs.models, runs.of("moe")[0], by="domain", speed=False)


def pair_of(found: Comparison, first: str, second: str) -> Pair:
    return next(pair for pair in found.pairs if (pair.first, pair.second) == (first, second))


def test_losses_are_those_that_the_runs_measured_themselves(runs: Runs, found: Comparison) -> None:
    for model in found.models[1:]:
        for checkpoint, run in zip(model.checkpoints, runs.of(model.name), strict=True):
            own = json.loads((run / "summary.json").read_text())["held_out"]
            assert checkpoint.loss == pytest.approx(own["loss"], abs=1e-5)
            assert checkpoint.by_domain == pytest.approx(own["by_domain"], abs=1e-5)
    assert sum(found.text.tokens.values()) == own["tokens"]
    assert found.unit == "token"
    a_byte = sum(found.text.tokens.values()) / sum(found.text.bytes.values())
    assert found.base.bits_per_byte.value == pytest.approx(found.base.loss.value * a_byte / math.log(2))
    assert found.base.perplexity.value == pytest.approx(math.exp(found.base.loss.value))


def test_both_intervals_where_there_are_seeds(found: Comparison) -> None:
    base, dense, moe = found.models
    assert base.loss.seeds is None
    seeds = [checkpoint.loss for checkpoint in moe.checkpoints]
    assert moe.loss.value == pytest.approx(sum(seeds) / 2)
    assert moe.loss.seeds is not None
    # Student's t of one degree of freedom: 12.706 standard errors of two values are 12.706 half differences.
    assert moe.loss.seeds.high - moe.loss.value == pytest.approx(12.706 * abs(seeds[0] - seeds[1]) / 2, rel=1e-3)
    gap = pair_of(found, "moe", "dense").loss
    assert gap.value == pytest.approx(moe.loss.value - dense.loss.value)
    assert gap.seeds is not None
    gaps = [a.loss - b.loss for a, b in zip(moe.checkpoints, dense.checkpoints, strict=True)]
    assert gap.seeds.high - gap.value == pytest.approx(12.706 * abs(gaps[0] - gaps[1]) / 2, rel=1e-3)
    assert gap.documents.low < gap.value < gap.documents.high


def test_what_each_is_and_how_long_it_was_trained(runs: Runs, found: Comparison) -> None:
    base, dense, moe = found.models
    assert (base.kind, dense.kind, moe.kind) == ("dense", "dense", "moe")
    assert (moe.experts, moe.top_k) == (4, 2)
    assert base.parameters == base.active == dense.parameters
    ffn = 3 * 32 * 48 * 2  # matrices, layers
    assert moe.parameters == base.parameters + 3 * ffn + 2 * 4 * 32
    assert moe.active == base.parameters + ffn + 2 * 4 * 32
    assert moe.disk == sum(file.stat().st_size for file in (runs.of("moe")[0] / "model").glob("*.safetensors"))
    assert moe.flops > base.flops
    summary = json.loads((runs.of("moe")[0] / "summary.json").read_text())
    training = moe.checkpoints[0].training
    assert training is not None
    assert (training.tokens, training.flops, training.since) == (summary["tokens"], summary["flops"], "base")
    assert training.stages == ("moe", "moe-0/model")
    assert [checkpoint.seed for checkpoint in moe.checkpoints] == [0, 1]
    assert base.checkpoints[0].training is None


def test_the_verdict_says_who_wins_after_how_much(found: Comparison) -> None:
    first = found.verdict[0]
    assert any(said in first for said in ("moe beats dense", "moe loses to dense", "no difference seen"))
    assert "after equal tokens and 1." in first
    assert "times the FLOPs of training" in first
    assert any(sentence.startswith("Compared with dense, moe has") for sentence in found.verdict)
    assert found.winners["parameters"] == ("base", "dense")


def test_agreement_of_an_exact_mixture_is_whole(tmp_path: Path) -> None:
    dense = dense_llama()
    models = {"base": save(dense, tmp_path / "a"), "copy": save(moe_of(dense), tmp_path / "b")}
    models["other"] = save(dense_llama(seed=1), tmp_path / "c")
    found = compare(models, write_text(tmp_path / "text.jsonl", 12), speed=False)
    _, copy, other = found.models
    assert copy.agreement is not None
    assert other.agreement is not None
    assert copy.agreement.top1.value == pytest.approx(1.0, abs=0.01)
    assert copy.agreement.kl.value == pytest.approx(0.0, abs=1e-5)
    assert other.agreement.top1.value < 0.5
    assert other.agreement.kl.value > 0.1
    assert copy.by_domain == {}
    assert not pair_of(found, "copy", "base").loss.is_decided  # rounding is no difference, however sure its sign is
    assert abs(pair_of(found, "copy", "base").loss.value) < 1e-5


def test_speed_and_memory(tmp_path: Path) -> None:
    models = {"base": save(dense_llama(), tmp_path / "a"), "moe": save(random_moe("mixtral"), tmp_path / "b")}
    found = compare(models, write_text(tmp_path / "text.jsonl", 6))
    for model in found.models:
        assert model.speed is not None
        assert min(model.speed.latency, model.speed.prefill, model.speed.decode) > 0
        assert model.speed.memory >= 4 * model.parameters
        assert model.speed.settings["prompt_tokens"] == 112  # 128 positions less the answer's
    assert {"latency", "prefill", "decode", "memory"} <= found.winners.keys()
    assert any("prefill runs at" in sentence for sentence in found.verdict)


def test_models_are_timed_as_generate_runs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_forward: list[bool] = []
    experts: set[str] = set()

    def watched(model: Any, **options: Any) -> Any:
        own_forward.append("forward" in vars(model.lm_head))
        if hasattr(model.config, "num_local_experts"):
            experts.add(model.config._experts_implementation)
        return read_speed(model, **options)

    monkeypatch.setattr(comparison_speed, "read_speed", watched)
    models = {"base": save(dense_llama(), tmp_path / "a"), "moe": save(random_moe("mixtral"), tmp_path / "b")}
    compare(models, write_text(tmp_path / "text.jsonl", 6))
    assert own_forward
    assert all(own_forward)
    assert experts == {"smolmoe"}


def characters(folder: Path) -> None:
    """A tokenizer of bytes: another one than the tiny tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def test_other_tokenizers_are_compared_per_byte(tmp_path: Path) -> None:
    models = {"base": save(dense_llama(), tmp_path / "a"), "bytes": save(dense_gpt2(), tmp_path / "b", tokenizer=False)}
    characters(models["bytes"])
    data = write_text(tmp_path / "text.jsonl", 4)
    found = compare(models, data, speed=False, length=64, document_tokens=40)
    assert found.unit == "byte"
    assert any("The tokenizers differ" in warning for warning in found.warnings)
    assert found.models[1].agreement is None
    base, other = found.models
    assert base.bits_per_byte.value == pytest.approx(base.loss.value / math.log(2))
    # By hand: the same bytes, read by the model of bytes in windows of 64; nothing of the text is left out.
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    ids = [tiny_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
    scored = [
        text if len(one) < 40 else tiny_tokenizer().decode(one[:40]) for text, one in zip(texts, ids, strict=True)
    ]
    assert sum(found.text.bytes.values()) == sum(map(len, scored)) < sum(map(len, texts))
    nll = 0.0
    for text in scored:
        stream = [0, *(1 + sorted_letters().index("Ġ" if letter == " " else letter) for letter in text)]
        for cut in range(0, len(stream) - 1, 64):
            window = torch.tensor([stream[cut : cut + 65]])
            nll += dense_gpt2()(input_ids=window, labels=window).loss.item() * (window.shape[1] - 1)
    assert other.loss.value == pytest.approx(nll / sum(map(len, scored)), rel=1e-4)


def sorted_letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_text_that_a_run_was_trained_on_is_found(runs: Runs, tmp_path: Path) -> None:
    trained_on = runs.folder / "text.jsonl"
    found = compare(runs.models, trained_on, by="domain", speed=False, tokens=100_000)
    base, dense, _ = found.models
    rows = trained_on.read_text().splitlines()
    leak = dense.checkpoints[0].leak
    assert 0 < leak.documents < len(rows)  # not those that the run held out by their hash
    assert leak.unchecked == ()
    assert any(f"was trained on {leak.documents} of the {len(rows)} documents" in warning for warning in found.warnings)
    assert base.checkpoints[0].leak.unchecked is None
    held_out = compare(runs.models, runs.of("dense")[0], speed=False)
    assert [one.leak.documents for model in held_out.models for one in model.checkpoints] == [0] * 5
    assert any("training data of base is not on record" in warning for warning in held_out.warnings)


def test_a_runs_text_is_found_from_anywhere(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "project" / "runs" / "one"
    shutil.copytree(runs.of("moe")[0], here)
    shutil.copy(runs.folder / "text.jsonl", tmp_path / "project" / "text.jsonl")
    for file, key in ((here / "run.json", "recipe"), (here / "model" / "smolmoe.json", "request")):
        values = json.loads(file.read_text())
        values[key]["data"]["sources"][0]["path"] = "text.jsonl"
        file.write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    found = compare({"base": runs.base, "moe": here}, here, speed=False)
    assert found.models[1].checkpoints[0].leak == Leak(0, 0, ())
    own = json.loads((here / "summary.json").read_text())["held_out"]["loss"]
    assert found.models[1].loss.value == pytest.approx(own, abs=1e-5)


def test_training_text_that_is_gone_is_named(runs: Runs, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(runs.of("dense")[0], moved)
    path = moved / "model" / "smolmoe.json"
    values = json.loads(path.read_text())
    values["request"]["data"]["sources"][0]["path"] = "gone/text.jsonl"
    path.write_text(json.dumps(values))
    found = compare({"base": runs.base, "dense": moved}, runs.of("moe")[0], speed=False)
    assert found.models[1].checkpoints[0].leak.unchecked == ("gone/text.jsonl",)
    assert any("could not be searched" in warning and "gone/text.jsonl" in warning for warning in found.warnings)


def test_what_is_written(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = {"base": runs.base, "moe | <b>": runs.of("moe")[0]}
    found = compare(models, runs.of("moe")[0], by="domain", speed=False, out=out)
    written = json.loads((out / "compare.json").read_text())
    assert written["schema_version"] == 1
    assert written["kind"] == "compare"
    assert written["base"] == "base"
    assert written == json.loads(json.dumps(found.to_json()))
    assert isinstance(written["pairs"][0]["loss"]["is_decided"], bool)
    table = (out / "table.md").read_text()
    assert "<b>" not in table
    lines = [line for line in table.splitlines() if line.startswith("| all |")]
    assert f"{found.base.loss.value:.4f}" in lines[0]
    with pytest.raises(OutputError, match="contains a comparison"):
        compare(models, runs.of("moe")[0], speed=False, out=out)
    compare(models, runs.of("moe")[0], speed=False, out=out, overwrite=True)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="something other than"):
        compare(models, runs.of("moe")[0], speed=False, out=out, overwrite=True)


def test_models_that_cannot_be_compared(runs: Runs, tmp_path: Path) -> None:
    data = runs.folder / "text.jsonl"
    dense, moe = runs.of("dense"), runs.of("moe")
    copied = shutil.copytree(runs.base, tmp_path / "copied")
    bare = save(dense_llama(seed=3), tmp_path / "bare", tokenizer=False)
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"base": runs.base}, RequestError, "nothing to compare with"),
        ({"base": runs.base, "again": runs.base}, RequestError, "is the same model as base="),
        ({"base": runs.base, "again": copied}, RequestError, "is the same model as base="),
        ({"base": runs.base, "moe": [moe[0], moe[0]]}, RequestError, "is the same model as moe="),
        ({"base": runs.base, "dense": dense, "moe": [*moe, bare]}, RequestError, "different numbers of seeds"),
        ({"base": runs.base, "both": [dense[0], moe[0]]}, RequestError, "other tensors than"),
        ({"base": runs.base, "gone": tmp_path / "gone"}, SourceError, "no such model folder"),
        ({"base": runs.base, "empty": ""}, RequestError, "must be NAME=PATH"),
        ({"base": runs.base, "bare": bare}, SourceError, "has no tokenizer"),
    ]
    for models, error, message in refused:
        with pytest.raises(error, match=message):
            compare(models, data, speed=False)
    (copied / "smolmoe.json").write_text('{"schema_version": 99, "stage": "train"}')
    with pytest.raises(CheckpointError, match="schema 99"):
        compare({"base": dense[0], "newer": copied}, data, speed=False)


def test_text_that_cannot_be_used(runs: Runs, tmp_path: Path) -> None:
    models = {"base": runs.base, "moe": runs.of("moe")[0]}

    def written(name: str, *texts: str) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    plain = written("plain.jsonl", "one two", "three four")
    with pytest.raises(DataError, match=r'no row has a domain \(no "domain"\)'):
        compare(models, plain, by="domain", speed=False)
    with pytest.raises(DataError, match="holds no text"):
        compare(models, written("empty.jsonl", "", "  "), speed=False)
    with pytest.raises(DataError, match="a single document"):
        compare(models, written("one.jsonl", "one two", "one two"), speed=False)
    with pytest.raises(DataError, match="no such file"):
        compare(models, tmp_path / "gone.jsonl", speed=False)
    with pytest.raises(RequestError, match="longer than base's context"):
        compare(models, plain, length=VOCABULARY, speed=False)
    with pytest.raises(RequestError, match="must be 2 at least"):
        compare(models, plain, tokens=0, speed=False)
    with pytest.raises(RequestError, match="the domains of a run's text"):
        compare(models, runs.of("moe")[0], by="kind", speed=False)
    run = tmp_path / "aligned"
    run.mkdir()
    (run / "run.json").write_text('{"recipe": {"data": {"pairs": []}}}')
    with pytest.raises(DataError, match="no held-out text in this run"):
        compare(models, run, speed=False)
