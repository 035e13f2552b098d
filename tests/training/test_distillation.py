"""Training towards a teacher: what is learnt, that parts add up, going on, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dense_llama, save, tiny_tokenizer
from safetensors.torch import load_file
from tests.processes import run_ranks
from tests.training.runs import dense_folder, moe_folder, recipe, rows, trainer, write_text

from smolmoe.distillation.run import cache_teacher
from smolmoe.errors import DataError, OutputError, RequestError, TrainingError
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.training.estimate import estimate
from smolmoe.training.objective import check_gradients
from smolmoe.training.run import train

FP32 = {"bf16": False, "lr_scheduler_type": "constant", "warmup_steps": 0}
WORKER = "import json, sys; from smolmoe.training.run import train; train(json.loads(sys.argv[1]))"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a teacher that knows it a little, caches of what it says, and students."""
    folder = tmp_path_factory.mktemp("distill")
    write_text(folder / "text.jsonl")
    taught = recipe(
        folder, dense_folder(folder / "untaught"), trainer=trainer(max_steps=60), out=str(folder / "taught")
    )
    teacher, text = train(taught).model, folder / "text.jsonl"
    cache_teacher(teacher, text, folder / "top", top_k=20, device="cpu")
    cache_teacher(teacher, text, folder / "all", top_k=300, device="cpu")
    cache_teacher(teacher, text, folder / "drawn", sampled=30, device="cpu", shard_tokens=1000)
    cache_teacher(teacher, text, folder / "warm", top_k=300, temperature=2.0, device="cpu")
    save(dense_llama(seed=5), folder / "student")
    moe_folder(folder / "moe")
    return folder


def values(place: Path, out: Path, cache: str | None = "top", model: str = "student", **changes: Any) -> dict[str, Any]:
    distill = changes.pop("distill", {})
    steps = trainer(**FP32 | changes.pop("trainer", {}))
    found = recipe(place, place / model, trainer=steps, out=str(out), **changes)
    return found | ({} if cache is None else {"distill": {"cache": str(place / cache), **distill}})


def divergence(student: Path, teacher: Path, text: Path) -> float:
    """Mean KL(teacher ‖ student) on a text."""
    from smolmoe.moe.loading import load_model

    documents = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    ids = torch.tensor([[0, *tiny_tokenizer()(document)["input_ids"][:50]] for document in documents])
    with torch.no_grad():
        said, target = (load_model(folder)(ids).logits.log_softmax(-1) for folder in (student, teacher))
    return float((target.exp() * (target - said)).sum(-1).mean())


@pytest.mark.parametrize("cache", ["top", "drawn"])
def test_a_student_with_a_teacher_comes_nearer_to_it_than_one_with_text_alone(
    place: Path, tmp_path: Path, cache: str
) -> None:
    steps = {"max_steps": 40}
    alone = train(values(place, tmp_path / "alone", None, trainer=steps))
    taught = train(values(place, tmp_path / "taught", cache, distill={"weight": 1.0}, trainer=steps))
    teacher, unseen = place / "taught" / "model", write_text(tmp_path / "unseen.jsonl", documents=10, seed=99)
    assert divergence(taught.model, teacher, unseen) < 0.8 * divergence(alone.model, teacher, unseen)
    steps_taken = rows(taught.out, "step")
    assert steps_taken[-1]["distill"] < 0.5 * steps_taken[0]["distill"]
    assert all(row["loss"] == pytest.approx(row["distill"], abs=1e-9) for row in steps_taken)


@pytest.mark.parametrize("model", ["student", "moe"])
def test_losses_add_up_and_the_cross_entropy_is_that_of_training_without(
    place: Path, tmp_path: Path, model: str
) -> None:
    terms = {"objective": {"load_balance": 0.1}} if model == "moe" else {}
    plain = rows(train(values(place, tmp_path / "plain", None, model, **terms)).out, "step")
    run = train(values(place, tmp_path / "run", "all", model, distill={"weight": 0.25}, **terms)).out
    taught = rows(run, "step")
    assert taught[0]["ce"] == pytest.approx(plain[0]["ce"], rel=1e-6)
    for row in taught:
        added = 0.75 * row["ce"] + row["distill"] + row.get("load_balance", 0.0)
        assert row["loss"] == pytest.approx(added, rel=1e-6)
    window = rows(run, "window")[-1]
    # Windows are steps 1, then 2 and 3, and so on.
    assert window["distill"] == pytest.approx(taught[-1]["distill"] / 2 + taught[-2]["distill"] / 2, rel=0.3)
    assert window["perplexity"] == pytest.approx(torch.tensor(window["ce"]).exp().item(), rel=1e-5)
    if model == "moe":
        assert set(rows(run, "gradients")[0]["norms"]) == {"ce", "distill", "load_balance"}


def test_a_teacher_that_moves_no_router_is_no_error_and_a_router_term_is() -> None:
    """Routers whose gate is 1 get no gradient from text or teacher."""
    terms = {"z_loss": torch.ones((), requires_grad=True)}
    check_gradients({"ce": 0.0, "distill": 0.0, "z_loss": 0.1}, terms)
    with pytest.raises(TrainingError, match="gives the routers no gradient"):
        check_gradients({"ce": 0.1, "distill": 0.1, "z_loss": 0.0}, terms)


def test_the_divergence_is_the_teachers_own_on_the_same_documents(place: Path, tmp_path: Path) -> None:
    """The untrained student's first loss, against whole distributions computed beside it."""
    from smolmoe.data.blocks import Blocks
    from smolmoe.data.corpus import load_corpus
    from smolmoe.data.targets import open_cache
    from smolmoe.moe.loading import load_model, load_tokenizer

    for cache, temperature in (("all", 1.0), ("warm", 2.0)):
        asked = values(place, tmp_path / cache, cache, distill={"weight": 0.5, "temperature": temperature})
        asked["trainer"]["max_steps"] = 1
        found = rows(train(asked).out, "step")[0]["distill"]
        data = parse(TrainRecipe, asked).data
        corpus = load_corpus(data, load_tokenizer(place / "student"))
        blocks = Blocks(corpus.train, count=4, length=32, seed=0, targets=open_cache(place / cache))
        student = load_model(place / "student")
        sums, count = 0.0, 0
        for index in range(4):
            block = blocks[index]
            with torch.no_grad():
                said = (student(block["input_ids"][None]).logits[0, :-1] / temperature).log_softmax(-1)
            target = torch.zeros(32, 300).scatter(-1, block["target_ids"].long(), block["target_values"].float())[1:]
            sums += float((target.exp() * (target - said)).sum())
            count += 31
        assert found == pytest.approx(0.5 * temperature**2 * sums / count, rel=2e-3)


def test_parts_of_a_step_and_bf16_give_the_same_divergence(place: Path, tmp_path: Path) -> None:
    whole = train(values(place, tmp_path / "whole", "drawn"))
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    split = train(values(place, tmp_path / "split", "drawn", trainer=parts))
    for a, b in zip(rows(whole.out, "step"), rows(split.out, "step"), strict=True):
        assert a["distill"] == pytest.approx(b["distill"], abs=1e-4)
        assert a["ce"] == pytest.approx(b["ce"], abs=1e-4)
    low = train(values(place, tmp_path / "low", "drawn", trainer={"bf16": True}))
    assert rows(low.out, "step")[0]["distill"] == pytest.approx(rows(whole.out, "step")[0]["distill"], rel=0.02)


@pytest.mark.parametrize("cache", ["top", "drawn"])
def test_a_resumed_run_goes_on_to_the_last_digit(place: Path, tmp_path: Path, cache: str) -> None:
    steps = {"max_steps": 8, "save_steps": 4}
    whole = train(values(place, tmp_path / "a", cache, "moe", trainer=steps))
    train(values(place, tmp_path / "b", cache, "moe", trainer=steps | {"max_steps": 4}))
    resumed = train(values(place, tmp_path / "b", cache, "moe", trainer=steps), resume="latest")
    assert rows(resumed.out, "step") == rows(whole.out, "step")
    ours, theirs = (load_file(run.model / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_cannot_go_on_with_another_cache(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(place / "top")
    steps = {"max_steps": 2, "save_steps": 2}
    train(values(place, tmp_path / "run", trainer=steps) | {"distill": {"cache": str(moved)}})
    moved.unlink()
    moved.symlink_to(place / "all")
    again = values(place, tmp_path / "run", trainer=steps | {"max_steps": 4}) | {"distill": {"cache": str(moved)}}
    with pytest.raises(OutputError, match="data has changed since the run started"):
        train(again, resume="latest")


def test_two_processes_learn_what_one_learns(place: Path, tmp_path: Path) -> None:
    alone = train(values(place, tmp_path / "alone", "drawn", "moe", objective={"load_balance": 0.1}))
    shared = values(
        place,
        tmp_path / "shared",
        "drawn",
        "moe",
        objective={"load_balance": 0.1},
        trainer={"per_device_train_batch_size": 2},
    )
    run_ranks(WORKER, json.dumps(shared))
    for a, b in zip(rows(alone.out, "step"), rows(tmp_path / "shared", "step"), strict=True):
        assert a["ce"] == pytest.approx(b["ce"], abs=1e-5)
        assert a["distill"] == pytest.approx(b["distill"], abs=1e-5)


# -- what will not do --------------------------------------------------------------------------------------------------


def test_another_tokenizer_is_refused_with_the_tokens_that_differ(place: Path, tmp_path: Path) -> None:
    asked = values(place, tmp_path / "run")
    asked |= {"tokenizer": 280, "model": {"config": {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1}}}
    with pytest.raises(DataError, match=r"tokenizer differs.*300 tokens and 280.*\d+ is '.*' / '.*'.*more"):
        train(asked)
    assert not (tmp_path / "run").exists()


def test_another_text_is_refused(place: Path, tmp_path: Path) -> None:
    other = write_text(tmp_path / "other.jsonl", seed=7)
    asked = values(place, tmp_path / "run")
    asked["data"] = asked["data"] | {"sources": [{"path": str(other)}]}
    with pytest.raises(DataError, match=r"training documents are missing.*different text \(\w+ there, \w+ here\)"):
        train(asked)
    assert not (tmp_path / "run").exists()


def test_a_part_of_the_cached_text_in_another_mixture_is_found(place: Path, tmp_path: Path) -> None:
    lines = (place / "text.jsonl").read_text().splitlines()
    (tmp_path / "one.jsonl").write_text("\n".join(lines[:20]))
    (tmp_path / "two.jsonl").write_text("\n".join(lines[20:40]))
    sources = [
        {"path": str(tmp_path / "one.jsonl"), "weight": 3, "domain": "x"},
        {"path": str(tmp_path / "two.jsonl"), "weight": 1},
    ]
    asked = values(place, tmp_path / "run", trainer={"max_steps": 2})
    asked["data"] = asked["data"] | {"sources": sources, "length": 50, "seed": 9}
    assert len(rows(train(asked).out, "step")) == 2


@pytest.mark.parametrize("dry", [False, True])
def test_what_the_cache_does_not_have_is_refused_before_training(place: Path, tmp_path: Path, dry: bool) -> None:
    start = (lambda asked: estimate(parse(TrainRecipe, asked))) if dry else train
    with pytest.raises(RequestError, match=r"temperature 1; others.*temperature=2"):
        start(values(place, tmp_path / "run", distill={"temperature": 2.0}))
    with pytest.raises(RequestError, match="smoothed labels"):
        start(values(place, tmp_path / "run", trainer={"label_smoothing_factor": 0.1}))
    (place / "begun").mkdir(exist_ok=True)
    (place / "begun" / "request.json").write_text("{}")
    with pytest.raises(DataError, match="is incomplete"):
        start(values(place, tmp_path / "run", "begun"))
    with pytest.raises(RequestError, match="greater than 0"):
        parse(TrainRecipe, values(place, tmp_path / "run", distill={"weight": 0.0}))
    assert not (tmp_path / "run").exists()
