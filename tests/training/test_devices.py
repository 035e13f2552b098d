"""Two processes train as one does with the same global batch: DDP and FSDP2, over gloo on a CPU.

Everything is compared in fp32. Two processes add the same numbers in another order, so losses agree to rounding
(TIGHT), and weights to what that becomes in a few steps of Adam (WEIGHTS); what is resumed agrees to the last digit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import random_moe, save
from safetensors.torch import load_file
from tests.processes import run, run_ranks
from tests.training.runs import moe_folder, recipe, rows, trainer, write_text
from transformers import AutoModelForCausalLM

from smolmoe.recipe import TrainRecipe, parse
from smolmoe.training.carried import read_state_of
from smolmoe.training.run import train

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TIGHT = 3e-6  # of losses around 6, in fp32
WEIGHTS = 2e-5  # of steps of 1e-2

# Runs jobs one after the other in every process; tells what each gave, who tokenised, and what was trained.
WORKER = """
import json, sys, time
from pathlib import Path
from smolmoe.data import corpus
from smolmoe.errors import SmolmoeError
from smolmoe.training import distributed, trainer
from smolmoe.training.run import train
from torch.distributed import fsdp

jobs, told = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
build, prepare, fully_shard = corpus._Build.run, trainer.MoeTrainer._prepare_for_training, fsdp.fully_shard
distributed.in_turn, in_turn = (lambda work: asked(work)), distributed.in_turn
seen = {"tokenised": 0, "jobs": []}

def asked(work):
    (told / f"asks{distributed.rank()}").touch()
    return in_turn(work)

def counted(*args):
    seen["tokenised"] += 1
    while len([*told.glob("asks*")]) < 2:  # the other process would begin as well, if nothing kept it
        time.sleep(0.01)
    return build(*args)

def observed(self, *args, **kwargs):
    prepared = prepare(self, *args, **kwargs)
    seen["wrapped"] = type(prepared[0]).__name__
    seen["parameters"] = sorted({type(p.data).__name__ for p in prepared[0].parameters()})
    seen["held"] = sum(getattr(p, "_local_tensor", p).numel() for p in self.model.parameters())
    return prepared

corpus._Build.run, trainer.MoeTrainer._prepare_for_training = counted, observed
for job in jobs:
    fsdp.fully_shard = (lambda *args, **kwargs: None) if job.pop("break", False) else fully_shard
    resume = job.pop("resume", None)
    try:
        train(job, resume=resume)
        seen["jobs"].append(None)
    except SmolmoeError as error:
        seen["jobs"].append(str(error))
(told / f"rank{distributed.rank()}.json").write_text(json.dumps(seen))
"""


def in_two_processes(folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of two processes told of the jobs."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    run_ranks(WORKER, listed, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def values(folder: Path, model: Path, name: str, batch: int, **changes: Any) -> dict[str, Any]:
    """A run of 6 steps of 4 sequences: `batch` in each process, or `batch` times `accumulated`."""
    arguments = trainer(
        bf16=False, per_device_train_batch_size=batch, lr_scheduler_type="constant", save_steps=3, warmup_steps=0
    )
    # Adam makes a full step of a gradient that is 0 but for rounding, unless that is small beside its epsilon.
    arguments["adam_epsilon"] = 1e-5
    arguments |= changes.pop("trainer", {})
    evaluation = {"tokens": 200, "every": 3}
    return recipe(folder, model, out=str(folder / name), evaluation=evaluation, trainer=arguments, **changes)


def apart(a: Path, b: Path, *names: str) -> float:
    """The largest difference of those losses over the steps of two runs."""
    pairs = list(zip(rows(a, "step"), rows(b, "step"), strict=True))
    assert [x["step"] for x, _ in pairs] == list(range(1, 7))
    return max(abs(x[name] - y[name]) for x, y in pairs for name in names)


def weights_apart(a: Path, b: Path) -> float:
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (a, b))
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def test_ddp_trains_as_one_process(tmp_path: Path) -> None:
    moe = moe_folder(tmp_path / "moe")
    terms = {"objective": {"load_balance": 0.1, "z_loss": 0.01}}
    own_load = {"objective": {**terms["objective"], "balance_scope": "micro_batch"}}
    short = {"trainer": {"max_steps": 3}}
    jobs = [
        values(tmp_path, moe, "two", 2, **terms),
        values(tmp_path, moe, "own load", 2, **own_load),
        values(tmp_path, moe, "stopped", 2, **terms, **short),
        {**values(tmp_path, moe, "stopped", 2, **terms), "resume": "latest"},
        values(tmp_path, moe, "handed on", 2, **terms, **short),
        values(tmp_path, moe, "two", 2, **terms),  # there is a run already
        values(tmp_path, moe, "diverged", 2, **terms, trainer={"learning_rate": 1e38}),
    ]
    told = in_two_processes(tmp_path, jobs)
    one = train(values(tmp_path, moe, "one", 4, **terms)).out
    two = tmp_path / "two"

    assert [process["tokenised"] for process in told] == [1, 0]
    assert told[0]["wrapped"] == "DistributedDataParallel"
    assert apart(two, one, "ce", "load_balance", "z_loss", "loss") < TIGHT
    assert weights_apart(two, one) < WEIGHTS
    window, alone = rows(two, "window")[-1], rows(one, "window")[-1]
    assert window["tokens"] == alone["tokens"] == 6 * 4 * 32
    assert window["balance"] == pytest.approx(alone["balance"], abs=1e-6)
    assert not [path for path in two.rglob("*") if ".partial" in path.name]
    # With each rank's own load the term is another one: the agreement above is that of the load over both.
    assert apart(tmp_path / "own load", one, "load_balance") > 1e-3
    # Resumed by two, and by one.
    assert rows(tmp_path / "stopped", "step") == rows(two, "step")
    assert weights_apart(tmp_path / "stopped", two) == 0
    alone = train(values(tmp_path, moe, "handed on", 4, **terms), resume="latest").out
    assert apart(alone, one, "ce", "load_balance") < TIGHT
    # What one rank refuses, both do, with one message; a step that is no number is seen by both.
    for process in told:
        assert process["jobs"][:5] == [None] * 5
        assert "the folder contains a run (finished)" in process["jobs"][5]
        assert "the gradient norm of step 2 is nan; the step was not taken" in process["jobs"][6]


def test_fsdp_trains_as_one_process(tmp_path: Path) -> None:
    moe = moe_folder(tmp_path / "moe")
    terms = {"objective": {"load_balance": 0.1, "z_loss": 0.01}}
    fsdp, short = {"parallel": "fsdp"}, {"trainer": {"max_steps": 3}}
    jobs = [
        values(tmp_path, moe, "two", 2, **terms, **fsdp),
        values(tmp_path, moe, "stopped", 2, **terms, **fsdp, **short),
        {**values(tmp_path, moe, "stopped", 2, **terms, **fsdp), "resume": "latest"},
        values(tmp_path, moe, "handed on", 2, **terms, **fsdp, **short),
        {**values(tmp_path, moe, "not sharded", 2, **terms, **fsdp), "break": True},
        values(tmp_path, moe, "adafactor", 2, **fsdp, trainer={"optim": "adafactor"}),
        values(tmp_path, moe, "muon", 2, **fsdp, trainer={"optim": "muon"}),
    ]
    told = in_two_processes(tmp_path, jobs)
    one = train(values(tmp_path, moe, "one", 4, **terms)).out
    two = tmp_path / "two"

    for process in told:
        assert process["jobs"][:4] == [None] * 4
        assert "is not sharded across processes" in process["jobs"][4]
        assert process["jobs"][5].startswith("trainer.optim='adafactor'")
        assert process["jobs"][6].startswith("trainer.optim='muon'")
        assert process["parameters"] == ["DTensor"]
        assert process["wrapped"] == "FSDPMixtralForCausalLM"
    whole = sum(tensor.numel() for tensor in load_file(moe / "model.safetensors").values())
    assert sum(process["held"] for process in told) == whole
    assert apart(two, one, "ce", "load_balance", "z_loss", "loss") < TIGHT
    assert weights_apart(two, one) < WEIGHTS
    # Resumed by two, and, not sharded, by one.
    assert rows(tmp_path / "stopped", "step") == rows(two, "step")
    assert weights_apart(tmp_path / "stopped", two) == 0
    alone = train(values(tmp_path, moe, "handed on", 4, **terms), resume="latest").out
    assert apart(alone, one, "ce", "load_balance") < TIGHT
    # The optimiser's state is written as one process writes it.
    states = [read_state_of(run) for run in (two, one)]
    assert states[0].keys() == states[1].keys()
    for name, state in states[0].items():
        torch.testing.assert_close(state["exp_avg"], states[1][name]["exp_avg"], atol=1e-5, rtol=1e-3)
    loads_in_stock_transformers(two / "model", one / "model")


@pytest.mark.slow
def test_fsdp_with_all_that_is_done_to_routers(tmp_path: Path) -> None:
    moe = moe_folder(tmp_path / "moe")
    glm = save(random_moe("glm4_moe"), tmp_path / "glm")
    tied = moe_folder(tmp_path / "tied", granularity=2)
    (tied / "smolmoe.json").write_text(json.dumps({"stage": "upcycle", "layout": {"granularity": 2}}))
    noisy = {"objective": {"load_balance": 0.1}, "routing": {"noise": "learned", "temperature": 2.0}}
    parts = {"trainer": {"gradient_accumulation_steps": 2}}
    biased = {"objective": {"bias_rate": {0: 0.05, 3: 0.01}, "preset_bias": 100, "load_balance": 0.01}, **parts}
    # Adam makes a full step of a gradient that is 0 but for rounding, as that of some router weights of equal experts.
    again = {
        "optim": "sgd",
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    grouped = {"objective": {"load_balance": 0.1}, "routing": {"tie_groups": 4}, "trainer": again}
    fsdp, short = {"parallel": "fsdp"}, {"trainer": {"max_steps": 3}}
    jobs = [
        values(tmp_path, glm, "biased", 1, **biased, **fsdp),
        values(tmp_path, tied, "grouped", 2, **grouped, **fsdp),
        values(tmp_path, moe, "noisy", 2, **noisy, **fsdp),
        values(tmp_path, moe, "stopped", 2, **noisy, **fsdp, **short),
        {**values(tmp_path, moe, "stopped", 2, **noisy, **fsdp), "resume": "latest"},
    ]
    told = in_two_processes(tmp_path, jobs)
    assert [process["jobs"] for process in told] == [[None] * 5] * 2
    # Selection bias and accumulation; rows of a group tied across ranks, and layers computed again.
    alone = train(values(tmp_path, glm, "biased by one", 2, **biased)).out
    assert apart(tmp_path / "biased", alone, "ce", "load_balance") < TIGHT
    assert weights_apart(tmp_path / "biased", alone) < WEIGHTS
    alone = train(values(tmp_path, tied, "grouped by one", 4, **grouped)).out
    assert apart(tmp_path / "grouped", alone, "ce", "load_balance") < TIGHT
    assert weights_apart(tmp_path / "grouped", alone) < WEIGHTS
    # Learned noise and weights without their temperature are sharded, too, and come back.
    assert rows(tmp_path / "stopped", "step") == rows(tmp_path / "noisy", "step")
    assert weights_apart(tmp_path / "stopped", tmp_path / "noisy") == 0


def loads_in_stock_transformers(*folders: Path) -> None:
    script = """
import sys, torch
from transformers import AutoModelForCausalLM
assert "smolmoe" not in sys.modules
ours, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype="float32") for folder in sys.argv[1:])
assert type(ours).__name__ == "MixtralForCausalLM" == ours.config.architectures[0]
ids = torch.arange(20)[None]
torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-3, rtol=1e-3)
"""
    run(script, *folders)


@pytest.mark.slow
def test_the_command_speaks_once(tmp_path: Path) -> None:
    moe = moe_folder(tmp_path / "moe")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values(tmp_path, moe, "run", 2, parallel="fsdp")))
    command = [*TORCHRUN, "-m", "smolmoe", "train", str(path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(re.findall(r"^\s+held-out loss\s", first.stdout, re.MULTILINE)) == 1
    assert first.stdout.count("parameters, 6 steps") == 1
    assert first.stderr.count("Tokenising") == 1
    assert "Warning" not in first.stderr
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert second.stderr.count("error: out = ") == 1


@pytest.mark.slow
def test_the_page_on_scale(tmp_path: Path) -> None:
    """Its recipe is one, its script for expert parallelism runs, and its numbers are those of today."""
    page = (ROOT / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
    parse(TrainRecipe, {**yaml.safe_load(block(page, "```yaml", "```")), "out": "runs/moe-8x7b"})
    scale = [sys.executable, str(ROOT / "benchmarks" / "scale.py")]
    printed = subprocess.run(scale, capture_output=True, text=True, check=True)
    assert block(page, "<!-- scale:begin -->", "<!-- scale:end -->").strip() == printed.stdout.strip()
    moe = moe_folder(tmp_path / "moe")
    write_text(tmp_path / "text.jsonl")
    script = tmp_path / "expert_parallel.py"
    script.write_text(block(page, "```python", "```"))
    arguments = [str(moe), str(tmp_path / "text.jsonl"), str(tmp_path / "out")]
    cache = {**os.environ, "SMOLMOE_CACHE": str(tmp_path / "cache")}
    subprocess.run([*TORCHRUN, str(script), *arguments], check=True, env=cache)
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (moe, tmp_path / "out"))
    moved = {name for name, weight in after.named_parameters() if not torch.equal(weight, before.get_parameter(name))}
    assert moved == dict(after.named_parameters()).keys()


def block(page: str, begin: str, end: str) -> str:
    return page.split(begin)[1].split(end)[0]
