"""What the tests of the pages find: lines that name what there is not, output and recipes that are out of date."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs import commands, recipes

WRONG = {
    "smolmoe upcyle SRC OUT": "no such command: upcyle",
    "smolmoe data chose FILE": "no such command: chose",
    "smolmoe upcycle SRC OUT --expert-count 8": "no --expert-count",
    "smolmoe upcycle SRC": "upcycle: Missing parameter: out",
    "smolmoe upcycle SRC OUT --experts many": "upcycle: .*integer",
    "smolmoe verify DENSE MOE TOO": "verify: .*TOO",
    "smolmoe train RECIPE --set trainer.max_steps=1 --set objektive.z_loss=1": "no recipe has the key objektive.z_loss",
    "smolmoe train RECIPE --set objective.zloss=1": "no recipe has the key objective.zloss",
    "smolmoe run specialize": "no such recipe: specialize",
    "torchrun --nproc_per_node 8 -m smolmoe trian RECIPE": "no such command: trian",
    "python benchmarks/absent.py": "no such script",
    "python benchmarks/continued.py run --modell M": "no --modell",
    "make demos": "no such target: demos",
    "pip install 'smolmoe[aligned]'": "no such extra: aligned",
    "rm -r everything": "no such program",
}
RIGHT = (
    "smolmoe prune | merge-experts | add-expert MODEL OUT  fewer or more experts, with the measured loss",
    "smolmoe align sft|dpo|cpo RECIPE                      on TRL",
    "smolmoe distill cache --teacher MODEL --data TEXT --out CACHE --sampled N  # draws",
    "smolmoe data teach ... --resume    go on",
    'smolmoe route MODEL "Tom has 3 apples"    the expert',
    "smolmoe train RECIPE --set section.key=value",
    "python benchmarks/continued.py run --model M --data D",
    "accelerate launch -m smolmoe train RECIPE",
)


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_is_wrong_is_found(line: str, tmp_path: Path) -> None:
    with pytest.raises(commands.WrongLineError, match=WRONG[line]):
        commands.check(line, tmp_path)


@pytest.mark.parametrize("line", RIGHT)
def test_a_line_that_is_right_passes(line: str, tmp_path: Path) -> None:
    commands.check(line, tmp_path)


def test_lines_are_joined_and_documents_kept_whole(tmp_path: Path) -> None:
    text = "cat > a/b.txt <<'EOF'\none\n\n  two\nEOF\nsmolmoe x \\\n  --y\n# said\n"
    first, second = commands.lines_of(text)
    assert second == "smolmoe x --y"
    commands.run(first, tmp_path)
    assert (tmp_path / "a/b.txt").read_text() == "one\n\n  two\n"


def test_bad_input_of_a_command_that_is_run_is_found(tmp_path: Path) -> None:
    with pytest.raises(commands.WrongLineError, match="no such model folder"):
        commands.run(f"smolmoe inspect {tmp_path}/absent", tmp_path)


def test_printed_lines_are_compared_without_their_numbers() -> None:
    one = commands.shape("  loss   3.5867 dense, 3.5867 MoE (Δ +2.9e-08)")
    assert one == commands.shape("  loss                6.34 dense, 6.34 MoE (Δ -0.1)")
    assert one != commands.shape("  loss   3.5867 dense, 3.5867 mixture (Δ +2.9e-08)")
    assert commands.shape("per layer 1e-5 2e-5 3e-5") == commands.shape("per layer 1e-5 2e-5")
    assert commands.shape("692 M total in 2.7 s", exact=True) == commands.shape("692 M total in 14 s", exact=True)
    assert commands.shape("692 M total", exact=True) != commands.shape("700 M total", exact=True)


def test_recipes_that_no_model_takes_are_found() -> None:
    recipes.check("data: {sources: [{path: a}], length: 64}")
    recipes.check("lora: {rank: 4}")
    for wrong in (
        "date: {length: 64}",
        "distill: {cash: a}",
        "- name: a\n  train: {objective: {z: 1}}",
        "lora: {rnk: 4}",
    ):
        with pytest.raises((AssertionError, ValueError), match="unknown key"):
            recipes.check(wrong)
