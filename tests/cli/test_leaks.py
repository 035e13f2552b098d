"""No command shows what other libraries say: each is run as a user runs it, in a process that configured nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.alignment.runs import METHODS, moe_folder, write_corrections
from tests.alignment.runs import recipe as align_recipe
from tests.training.runs import dense_folder, write_text
from tests.training.runs import recipe as train_recipe

# What the tests set for themselves, but a user does not.
SET_BY_TESTS = ("TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, an MoE, text, corrections, and recipes."""
    folder = tmp_path_factory.mktemp("leaks")
    dense_folder(folder / "dense")
    moe_folder(folder / "moe")
    write_text(folder / "text.jsonl")
    write_corrections(folder / "corrections.jsonl", rows=6)
    values = train_recipe(folder, folder / "moe", samples={"prompts": ["the sum"], "new_tokens": 2})
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    for method in METHODS:
        (folder / f"{method}.yaml").write_text(yaml.safe_dump(align_recipe(folder, folder / "moe", method)))
    return folder


def smolmoe(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_TESTS}
    command = [sys.executable, "-m", "smolmoe", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)


def test_a_command_that_imports_no_torch(place: Path) -> None:
    done = smolmoe(place, "inspect", "dense", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "LlamaForCausalLM" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "train train.yaml",
        "train train.yaml --set out=workers --set trainer.dataloader_num_workers=1",
        "align sft sft.yaml",
        "align dpo dpo.yaml",
        "align cpo cpo.yaml",
        "align pairs moe --data corrections.jsonl --max-new-tokens 4 --out pairs",
        "align score moe --data corrections.jsonl --max-new-tokens 4",
        "upcycle dense upcycled --experts 4",
        "export moe exported --to generic",
        "extract moe expert --expert 1",
        "prune moe pruned --data text.jsonl --keep 2",
        "merge-experts moe merged --groups 0,1 --groups 2,3",
        "verify dense moe",
        "doctor moe",
        "probe moe --data text.jsonl --tokens 400 --length 64 --permutations 5 --out probe",
        "generate moe --prompt the --max-new-tokens 4",
        "compare dense=dense moe=moe --data text.jsonl --tokens 400 --no-speed",
        "bench moe --batch-sizes 1 --prompt-tokens 8 --new-tokens 2 --rounds 1",
        "data select text.jsonl --score perplexity --model dense --out selected",
        "data score text.jsonl --model dense",
        "distill cache --teacher dense --data text.jsonl --top-k 4 --out targets",
        "sweep train.yaml --tokens 256,512,1024 --out sweep",
        "push moe file:hub",
    ],
)
def test_a_quiet_command_shows_no_more_than_its_result(place: Path, command: str) -> None:
    done = smolmoe(place, *command.split(), "--quiet")
    assert done.returncode in (0, 1), done.stderr  # 1: a check failed, which is a result
    assert done.stdout
    ours = re.compile(r"device: cpu|\d+ tokens|The held-out loss got worse|Ignored in the rows|no row has")
    assert [line for line in done.stderr.splitlines() if not ours.match(line)] == []


@pytest.mark.slow
def test_a_log_holds_our_lines_only(place: Path) -> None:
    done = smolmoe(place, "train", "train.yaml", "--set", "out=logged")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"device: cpu \(.+, \d+ threads?\)", lines[0])
    steps = "Reading the model|Tokenising|Training|Measuring the held-out loss|Writing the model|Writing samples"
    steps += r"|Reading \S*text\.jsonl"
    others = "(device|format|sampling): .*"
    known = re.compile(rf"({steps}) \.\.\.|({steps})  .*|step \d+ of 6: held-out loss .*|{others}")
    assert [line for line in lines if not known.fullmatch(line)] == []
    assert "\x1b" not in done.stderr


@pytest.mark.slow
def test_json_and_nothing_else(place: Path) -> None:
    done = smolmoe(place, "align", "sft", "sft.yaml", "--set", "out=as-json", "--json")
    found = json.loads(done.stdout)
    assert all(line.startswith("Ignored in the rows") for line in done.stderr.splitlines())
    outcome = found["outcome"]
    assert outcome["measured"][0] == {
        "name": "held-out loss",
        "before": found["before"]["loss"],
        "after": found["after"]["loss"],
        "unit": "nats per token",
    }
    assert outcome["tokens"] == found["tokens"] > 0
    assert outcome["tokens_per_second"] > 0
