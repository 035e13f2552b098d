"""The worked problems are right: every equation in them holds, and the answers follow from the questions alone."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction

import pytest

from smolmoe.data.word_problems import KINDS, worked_problem

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
EXPRESSION = r"(?:[0-9(][0-9.()/+×÷ -]*[0-9)]|[0-9])"


def value(expression: str) -> Fraction:
    """Arithmetic with exact fractions, by Python's own parser."""

    def of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -of(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(str(node.value))

    return of(ast.parse(expression.replace("×", "*").replace("÷", "/").strip(), mode="eval").body)


def numbers(text: str) -> list[Fraction]:
    return [Fraction(number) for number in re.findall(r"\d+", text)]


def equations(text: str) -> list[tuple[str, str]]:
    """The pairs of numeric expressions that the text calls equal."""
    return re.findall(rf"(?<![\w.×÷+-])(?<![×÷+-] )({EXPRESSION}) = (?=(-?{EXPRESSION}))", text)


def solve_linear(question: str) -> Fraction:
    """The root of a linear equation, from its two sides at 0 and at 1: no rule of rearranging is used."""
    match = re.search(r"(?:Solve|solution of) (.*?) = (.*?)(?: for \w)?\.$", question)
    assert match
    sides = [re.sub(r"(\d*)([a-z])", r"\1*(X)", side) for side in match.groups()]

    def gap(x: int) -> Fraction:
        left, right = (value(side.replace("X", str(x))) for side in sides)
        return left - right

    return gap(0) / (gap(0) - gap(1))


def change(n: list[Fraction]) -> Fraction:
    return n[4] - n[0] * n[1] - n[2] * n[3]


INDEPENDENT: dict[str, Callable[[str], Fraction]] = {
    "addition": lambda q: sum(numbers(q), Fraction()),
    "subtraction": lambda q: abs(numbers(q)[0] - numbers(q)[1]),
    "multiplication": lambda q: numbers(q)[0] * numbers(q)[1],
    "expression": lambda q: value(re.search(r"\d.*\)", q).group()),
    "shopping": lambda q: change(numbers(q)),
    "packing": lambda q: numbers(q)[0] * numbers(q)[1] - numbers(q)[2],
    "speed": lambda q: numbers(q)[0] * numbers(q)[1] if "How far" in q else numbers(q)[0] / numbers(q)[1],
    "linear": solve_linear,
    "linear both sides": solve_linear,
    "fraction sum": lambda q: sum((Fraction(part) for part in re.findall(r"\d+/\d+", q)), Fraction()),
    "fraction of": lambda q: numbers(q)[0] * numbers(q)[1] / numbers(q)[2],
    "percent of": lambda q: numbers(q)[0] * numbers(q)[1] / 100,
    "discount": lambda q: numbers(q)[0] * (1 + (1 if "rises" in q else -1) * numbers(q)[1] / 100),
    "arithmetic sequence": lambda q: numbers(q)[0] + (numbers(q)[-1] - 1) * (numbers(q)[1] - numbers(q)[0]),
    "geometric sequence": lambda q: numbers(q)[3] ** 2 / numbers(q)[2],
    "average": lambda q: sum(numbers(q), Fraction()) / len(numbers(q)),
    "rectangle": lambda q: numbers(q)[0] * numbers(q)[1] if "area" in q else 2 * sum(numbers(q), Fraction()),
    "ages": lambda q: numbers(q)[0] * numbers(q)[1] + numbers(q)[2],
    "ratio": lambda q: numbers(q)[0] * numbers(q)[1] / (numbers(q)[1] + numbers(q)[2]),
}


def answer_value(answer: str) -> Fraction:
    match = re.search(r"-?\d+(?:/\d+)?", answer)
    assert match
    return Fraction(match.group())


def test_every_kind_has_an_independent_solution():
    assert set(INDEPENDENT) | {"division"} == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_answers_follow_from_the_questions(kind):
    rng = random.Random(kind)
    for problem in (worked_problem(rng, kind) for _ in range(200)):
        if kind == "division":
            a, b = numbers(problem.question)
            assert numbers(problem.answer) == [a // b, a % b], problem.text
        else:
            assert answer_value(problem.answer) == INDEPENDENT[kind](problem.question), problem.text


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_equation_in_a_solution_holds(kind):
    rng = random.Random(f"{kind} steps")
    checked = 0
    for problem in (worked_problem(rng, kind) for _ in range(200)):
        for left, right in equations("\n".join(problem.steps)):
            checked += 1
            assert value(left) == value(right.rstrip(".")), f"{left} = {right} in\n{problem.text}"
    assert checked >= 200


def test_equations_are_found():
    text = "1% of 84 is 84 ÷ 100 = 0.84.\n3/4 = 9/12 and 1/2 = 6/12.\n4x + 2 = 7.\nx = 4.\nCheck: 3 × (-2) + 8 = 2."
    found = [("84 ÷ 100", "0.84"), ("3/4", "9/12"), ("1/2", "6/12"), ("3 × (-2) + 8", "2")]
    assert equations(text) == found


def test_problems_vary():
    rng = random.Random(0)
    problems = [worked_problem(rng) for _ in range(2000)]
    assert {problem.kind for problem in problems} == set(KINDS)
    assert len({problem.text for problem in problems}) > 1900
    assert [worked_problem(random.Random(5)) for _ in range(2)] == [worked_problem(random.Random(5)) for _ in range(2)]
