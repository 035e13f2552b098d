"""Generated problems in elementary mathematics: a question, its solution in steps, the answer.

Every number in a solution follows from the numbers of its question. Answers are whole numbers or exact fractions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

NAMES = ("Anna", "Ben", "Chloe", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Maya", "Noah", "Rosa")
GOODS = ("pencils", "notebooks", "apples", "tickets", "stamps", "candles", "mugs", "books", "oranges", "lamps")
HOLDERS = (("boxes", "box"), ("bags", "bag"), ("shelves", "shelf"), ("baskets", "basket"), ("trays", "tray"))
VEHICLES = ("train", "bus", "car", "cyclist", "ship", "truck")


@dataclass(frozen=True)
class Problem:
    """A question, the lines of its worked solution, and the answer as it would be written at the end."""

    kind: str
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        """The problem as one document."""
        return "\n".join((f"Problem: {self.question}", "Solution:", *self.steps, f"Answer: {self.answer}"))


Made = tuple[str, list[str], object]


def worked_problem(rng: random.Random, kind: str | None = None) -> Problem:
    """A problem of `kind` (a key of `KINDS`), or of a random kind."""
    kind = kind or rng.choice(sorted(KINDS))
    question, steps, answer = KINDS[kind](rng)
    return Problem(kind, question, tuple(steps), str(answer))


def _addition(rng: random.Random) -> Made:
    a, b = rng.randint(12, 899), rng.randint(12, 899)
    tens = b - b % 10
    question = rng.choice((f"What is {a} + {b}?", f"Work out {a} + {b}.", f"Find the sum of {a} and {b}."))
    steps = [f"Split {b} into {tens} and {b % 10}.", f"{a} + {tens} = {a + tens}."]
    return question, [*steps, f"{a + tens} + {b % 10} = {a + b}."], a + b


def _subtraction(rng: random.Random) -> Made:
    b = rng.randint(12, 600)
    a = b + rng.randint(5, 399)
    tens = b - b % 10
    question = rng.choice((f"What is {a} - {b}?", f"Work out {a} - {b}.", f"Subtract {b} from {a}."))
    if "from" in question:
        steps = [f"Take away {tens} first, then {b % 10}."]
    else:
        steps = [f"Subtract the tens first: {tens}, then {b % 10}."]
    return question, [*steps, f"{a} - {tens} = {a - tens}.", f"{a - tens} - {b % 10} = {a - b}."], a - b


def _multiplication(rng: random.Random) -> Made:
    a, b = rng.randint(11, 99), rng.randint(11, 60)
    tens, ones = b - b % 10, b % 10
    question = rng.choice((f"What is {a} × {b}?", f"Multiply {a} by {b}.", f"Find the product of {a} and {b}."))
    steps = [f"{b} = {tens} + {ones}, so multiply {a} by each part.", f"{a} × {tens} = {a * tens}."]
    return question, [*steps, f"{a} × {ones} = {a * ones}.", f"{a * tens} + {a * ones} = {a * b}."], a * b


def _division(rng: random.Random) -> Made:
    b, quotient = rng.randint(3, 12), rng.randint(4, 60)
    remainder = rng.randint(0, b - 1)
    a = b * quotient + remainder
    question = rng.choice((f"Divide {a} by {b}. What is left over?", f"What are {a} ÷ {b} and its remainder?"))
    steps = [f"{b} × {quotient} = {b * quotient}.", f"{a} - {b * quotient} = {remainder}."]
    steps.append(f"{remainder} is less than {b}, so {b} goes into {a} exactly {quotient} times, with {remainder} left.")
    return question, steps, f"{quotient} remainder {remainder}"


def _expression(rng: random.Random) -> Made:
    a, b, c, d = rng.randint(2, 60), rng.randint(2, 12), rng.randint(9, 20), rng.randint(1, 8)
    question = f"{rng.choice(('Evaluate', 'Calculate', 'What is the value of'))} {a} + {b} × ({c} - {d})"
    steps = [f"The brackets come first: {c} - {d} = {c - d}."]
    steps.append(f"Multiplication comes before addition: {b} × {c - d} = {b * (c - d)}.")
    steps.append(f"Then {a} + {b * (c - d)} = {a + b * (c - d)}.")
    return question + ("?" if question.startswith("What") else "."), steps, a + b * (c - d)


def _shopping(rng: random.Random) -> Made:
    name, (one, two) = rng.choice(NAMES), rng.sample(GOODS, 2)
    n, p, m, q = (rng.randint(2, 9) for _ in range(4))
    total = n * p + m * q
    paid = total // 10 * 10 + rng.choice((10, 20))
    verb = rng.choice(("buys", "orders", "picks up"))
    question = f"{name} {verb} {n} {one} at ${p} each and {m} {two} at ${q} each, and pays with ${paid}. "
    question += rng.choice(
        ("How much change is there?", "How many dollars come back?", f"What change does {name} get?")
    )
    steps = [f"The {one} cost {n} × {p} = {n * p} dollars.", f"The {two} cost {m} × {q} = {m * q} dollars."]
    steps.append(f"Together that is {n * p} + {m * q} = {total} dollars.")
    return question, [*steps, f"The change is {paid} - {total} = {paid - total} dollars."], f"${paid - total}"


def _packing(rng: random.Random) -> Made:
    name, goods, (holders, holder) = rng.choice(NAMES), rng.choice(GOODS), rng.choice(HOLDERS)
    n, each = rng.randint(3, 15), rng.randint(4, 24)
    gone = rng.randint(2, n * each - 1)
    question = f"{name} has {n} {holders} with {each} {goods} in each {holder} and gives {gone} of the {goods} away. "
    question += rng.choice((f"How many {goods} are left?", f"How many {goods} does {name} keep?"))
    steps = [f"At first there are {n} × {each} = {n * each} {goods}."]
    steps.append(f"After giving {gone} away, {n * each} - {gone} = {n * each - gone} are left.")
    return question, steps, n * each - gone


def _speed(rng: random.Random) -> Made:
    vehicle, v, t = rng.choice(VEHICLES), rng.randint(8, 95), rng.randint(2, 9)
    if rng.random() < 0.5:
        question = f"A {vehicle} travels at {v} km/h for {t} hours. How far does it go?"
        return question, [f"Distance is speed times time: {v} × {t} = {v * t}."], f"{v * t} km"
    question = f"A {vehicle} covers {v * t} km in {t} hours at a steady speed. How fast is it?"
    return question, [f"Speed is distance divided by time: {v * t} ÷ {t} = {v}."], f"{v} km/h"


def _linear(rng: random.Random) -> Made:
    x, a, b = rng.randint(-12, 20), rng.randint(2, 12), rng.randint(1, 40)
    letter, (shown, undo, sign) = rng.choice("xyzn"), rng.choice((("+", "Subtract {} from", 1), ("-", "Add {} to", -1)))
    right = a * x + sign * b
    question = f"Solve {a}{letter} {shown} {b} = {right} for {letter}."
    steps = [f"{undo.format(b)} both sides: {a}{letter} = {a * x}."]
    steps.append(f"Divide both sides by {a}: {letter} = {x}.")
    steps.append(f"Check: {a} × {_signed(x)} {shown} {b} = {right}.")
    return question, steps, f"{letter} = {x}"


def _linear_both_sides(rng: random.Random) -> Made:
    x, c, extra, b = rng.randint(1, 15), rng.randint(2, 7), rng.randint(2, 6), rng.randint(1, 20)
    a, d = c + extra, (extra * x) + b
    question = rng.choice(("Solve", "Find the solution of")) + f" {a}x + {b} = {c}x + {d}."
    steps = [f"Subtract {c}x from both sides: {extra}x + {b} = {d}."]
    steps.append(f"Subtract {b} from both sides: {extra}x = {extra * x}.")
    steps.append(f"Divide both sides by {extra}: x = {x}.")
    steps.append(f"Check: {a} × {x} + {b} = {a * x + b} and {c} × {x} + {d} = {c * x + d}.")
    return question, steps, f"x = {x}"


def _signed(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def _fraction_sum(rng: random.Random) -> Made:
    b, d = rng.sample(range(2, 13), 2)
    a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
    common = lcm(b, d)
    p, q = a * common // b, c * common // d
    question = rng.choice((f"Add {a}/{b} and {c}/{d}.", f"What is {a}/{b} + {c}/{d}?"))
    steps = [f"A common denominator of {b} and {d} is {common}."]
    steps.append(f"{a}/{b} = {p}/{common} and {c}/{d} = {q}/{common}.")
    steps.append(f"{p}/{common} + {q}/{common} = {p + q}/{common}.")
    factor = gcd(p + q, common)
    if factor > 1:
        steps.append(f"Divide top and bottom by {factor}: {p + q}/{common} = {Fraction(p + q, common)}.")
    return question, steps, Fraction(p + q, common)


def _fraction_of(rng: random.Random) -> Made:
    name, goods = rng.choice(NAMES), rng.choice(GOODS)
    d, part = rng.randint(3, 10), rng.randint(3, 25)
    n = rng.randint(2, d - 1)
    total = d * part
    question = f"{name} has {total} {goods} and sells {n}/{d} of them. How many {goods} does {name} sell?"
    steps = [f"One {d}th of {total} is {total} ÷ {d} = {part}." if d > 3 else f"A third is {total} ÷ 3 = {part}."]
    return question, [*steps, f"{n} of these parts are {n} × {part} = {n * part}."], n * part


def _percent_of(rng: random.Random) -> Made:
    percent, base = rng.choice((5, 10, 15, 20, 25, 30, 40, 60, 75, 80, 90)), rng.randint(2, 60) * 20
    value = base * percent // 100
    question = rng.choice((f"What is {percent}% of {base}?", f"Find {percent}% of {base}."))
    if rng.random() < 0.5:
        steps = [f"1% of {base} is {base} ÷ 100 = {_decimal(base)}.", f"{percent} × {_decimal(base)} = {value}."]
    else:
        steps = [f"{percent}% means {percent}/100.", f"{base} × {percent} = {base * percent}."]
        steps.append(f"{base * percent} ÷ 100 = {value}.")
    return question, steps, value


def _decimal(hundredths: int) -> str:
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


def _discount(rng: random.Random) -> Made:
    percent, price = rng.choice((5, 10, 15, 20, 25, 30, 40, 50)), rng.randint(2, 45) * 20
    cut, thing = price * percent // 100, rng.choice(("coat", "bicycle", "table", "camera", "guitar", "chair"))
    up = rng.random() < 0.4
    change = "rises by" if up else "is reduced by"
    question = f"The price of a {thing} is ${price}. It {change} {percent}%. What is the new price?"
    new = price + cut if up else price - cut
    steps = [f"{percent}% of {price} is {price} × {percent} ÷ 100 = {cut}."]
    return question, [*steps, f"The new price is {price} {'+' if up else '-'} {cut} = {new} dollars."], f"${new}"


def _arithmetic_sequence(rng: random.Random) -> Made:
    start, step, n = rng.randint(1, 30), rng.randint(2, 15), rng.randint(6, 40)
    shown = ", ".join(str(start + step * i) for i in range(4))
    question = f"A sequence begins {shown}, ... What is term number {n}?"
    steps = [f"Each term is {step} more than the one before: {start + step} - {start} = {step}."]
    steps.append(f"Term {n} comes {n - 1} steps after the first: {n - 1} × {step} = {(n - 1) * step}.")
    steps.append(f"{start} + {(n - 1) * step} = {start + (n - 1) * step}.")
    return question, steps, start + (n - 1) * step


def _geometric_sequence(rng: random.Random) -> Made:
    start, ratio = rng.randint(1, 12), rng.randint(2, 5)
    terms = [start * ratio**i for i in range(5)]
    question = f"What comes next: {', '.join(map(str, terms[:4]))}, ...?"
    steps = [f"{terms[1]} ÷ {terms[0]} = {ratio} and {terms[2]} ÷ {terms[1]} = {ratio}."]
    steps.append(f"So each term is the one before multiplied by {ratio}.")
    return question, [*steps, f"{terms[3]} × {ratio} = {terms[4]}."], terms[4]


def _average(rng: random.Random) -> Made:
    count, mean = rng.randint(3, 5), rng.randint(10, 60)
    values = [mean + rng.randint(-mean // 5, mean // 5) for _ in range(count - 1)]
    values.append(count * mean - sum(values))
    shown = ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
    question = rng.choice((f"Find the average of {shown}.", f"What is the mean of {shown}?"))
    steps = [f"The sum is {' + '.join(map(str, values))} = {sum(values)}."]
    return question, [*steps, f"There are {count} numbers: {sum(values)} ÷ {count} = {mean}."], mean


def _rectangle(rng: random.Random) -> Made:
    a, b = rng.randint(3, 40), rng.randint(2, 30)
    thing = rng.choice(("A rectangle", "A garden", "A field", "A room", "A sheet of metal"))
    if rng.random() < 0.5:
        question = f"{thing} is {a} m long and {b} m wide. What is its area?"
        return question, [f"Area is length times width: {a} × {b} = {a * b}."], f"{a * b} square metres"
    question = f"{thing} is {a} m long and {b} m wide. What is its perimeter?"
    steps = [f"Length and width together: {a} + {b} = {a + b}.", f"Twice that: 2 × {a + b} = {2 * (a + b)}."]
    return question, steps, f"{2 * (a + b)} m"


def _ages(rng: random.Random) -> Made:
    (one, two), age, times = rng.sample(NAMES, 2), rng.randint(3, 20), rng.randint(2, 4)
    years = rng.randint(2, 15)
    older, later = age * times, age * times + years
    question = f"{one} is {age} years old. {two} is {times} times as old. How old will {two} be in {years} years?"
    steps = [f"{two} is {times} × {age} = {older} now.", f"In {years} years that becomes {older} + {years} = {later}."]
    return question, steps, later


def _ratio(rng: random.Random) -> Made:
    (one, two), part = rng.sample(NAMES, 2), rng.randint(3, 30)
    a, b = rng.randint(1, 7), rng.randint(1, 7)
    total = (a + b) * part
    question = f"{one} and {two} share ${total} in the ratio {a} : {b}. How much does {one} get?"
    steps = [f"There are {a} + {b} = {a + b} parts.", f"One part is {total} ÷ {a + b} = {part} dollars."]
    return question, [*steps, f"{one} gets {a} × {part} = {a * part} dollars."], f"${a * part}"


KINDS: dict[str, Callable[[random.Random], Made]] = {
    "addition": _addition,
    "ages": _ages,
    "arithmetic sequence": _arithmetic_sequence,
    "average": _average,
    "discount": _discount,
    "division": _division,
    "expression": _expression,
    "fraction of": _fraction_of,
    "fraction sum": _fraction_sum,
    "geometric sequence": _geometric_sequence,
    "linear": _linear,
    "linear both sides": _linear_both_sides,
    "multiplication": _multiplication,
    "packing": _packing,
    "percent of": _percent_of,
    "ratio": _ratio,
    "rectangle": _rectangle,
    "shopping": _shopping,
    "speed": _speed,
    "subtraction": _subtraction,
}
