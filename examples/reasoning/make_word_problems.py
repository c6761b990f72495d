"""Make examples/reasoning/word_problems.jsonl: arithmetic word problems with worked steps and a final answer.

    python examples/reasoning/make_word_problems.py [--output FILE]

Every row is one of twelve kinds of problem with names, things and numbers of its own; the answer is computed,
and no problem stands twice. As rows of several sources do, they end in three conventions, a third each: `#### 18` (with
GSM8K's annotations for a calculator), `\\boxed{18}` and `The answer is: 18`. The same bytes come out on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

SEED = 7
ROWS_PER_KIND = 40
NAMES = ("Amina", "Ben", "Carla", "Dmitri", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Mara", "Nuno")
THINGS = ("apples", "beads", "books", "buttons", "cards", "coins", "eggs", "marbles", "nails", "shells", "stamps")
ENDS = ("#### {}", "\\boxed{{{}}}", "The answer is: {}")
Number = int | Fraction
Steps = list[tuple[str, str, Number]]
"""(what is worked out, the expression, its value); the last value is the answer."""
Problem = tuple[str, Steps]
Draw = random.Random


def boxes(draw: Draw) -> Problem:
    name, things, a, b, c = who(draw), what(draw), draw.randint(2, 9), draw.randint(3, 12), draw.randint(2, 15)
    question = f"{name} has {a} boxes with {b} {things} in each box, and {c} more {things} on the table."
    steps = [("In the boxes", f"{a} x {b}", a * b), ("In all", f"{a * b} + {c}", a * b + c)]
    return f"{question} How many {things} are there?", steps


def sharing(draw: Draw) -> Problem:
    things, children, each = what(draw), draw.randint(2, 9), draw.randint(4, 12)
    lost, whole = draw.randint(1, each - 1), children * each
    question = f"{whole} {things} are shared equally among {children} children. Each child then loses {lost}."
    steps = [("Each child gets", f"{whole} / {children}", each), ("Left", f"{each} - {lost}", each - lost)]
    return f"{question} How many {things} has each child left?", steps


def change(draw: Draw) -> Problem:
    name, things, price, num = who(draw), what(draw), draw.randint(2, 9), draw.randint(2, 9)
    cost = price * num
    note = draw.choice([note for note in (10, 20, 50, 100) if note > cost])
    question = f"A bag of {things} costs ${price}. {name} buys {num} bags and pays with a ${note} note."
    steps = [("The bags cost", f"{num} x {price}", cost), ("Change", f"{note} - {cost}", note - cost)]
    return f"{question} How many dollars does {name} get back?", steps


def walk(draw: Draw) -> Problem:
    name, first, (factor, word) = who(draw), draw.randint(2, 15), draw.choice([(2, "twice"), (3, "three times")])
    second = factor * first
    question = f"{name} walks {first} km on Monday and {word} as far on Tuesday."
    steps = [("On Tuesday", f"{factor} x {first}", second), ("Together", f"{first} + {second}", first + second)]
    return f"{question} How many km does {name} walk on both days together?", steps


def half(draw: Draw) -> Problem:
    (name, friend), things, part, more = draw.sample(NAMES, 2), what(draw), draw.randint(3, 25), draw.randint(2, 20)
    question = f"{name} has {2 * part} {things}, gives half of them to {friend} and then finds {more} more."
    steps = [("After giving half away", f"{2 * part} / 2", part), ("Now", f"{part} + {more}", part + more)]
    return f"{question} How many {things} does {name} have now?", steps


def ages(draw: Draw) -> Problem:
    (name, friend), age, more = draw.sample(NAMES, 2), draw.randint(4, 30), draw.randint(2, 12)
    other = age + more
    steps = [(f"{friend} is", f"{age} + {more}", other), ("Together", f"{age} + {other}", age + other)]
    return f"{name} is {age} years old and {friend} is {more} years older. How old are they together?", steps


def machine(draw: Draw) -> Problem:
    things, rate, hours, broken = what(draw), draw.randint(5, 20), draw.randint(2, 8), draw.randint(2, 9)
    made = rate * hours
    question = f"A machine makes {rate} {things} an hour. It runs for {hours} hours, and {broken} {things} are broken."
    steps = [("Made", f"{rate} x {hours}", made), ("Whole", f"{made} - {broken}", made - broken)]
    return f"{question} How many {things} are whole?", steps


def sale(draw: Draw) -> Problem:
    thing, share, price = draw.choice(("coat", "lamp", "bike")), draw.choice([10, 20, 25, 50]), 20 * draw.randint(1, 9)
    off = price * share // 100
    question = f"A {thing} costs ${price}. In the sale it is {share}% cheaper."
    steps = [("Off", f"{price} x {share} / 100", off), ("In the sale", f"{price} - {off}", price - off)]
    return f"{question} How many dollars does the {thing} cost in the sale?", steps


def seats(draw: Draw) -> Problem:
    rows, wide, empty = draw.randint(3, 12), draw.randint(4, 12), draw.randint(2, 11)
    whole = rows * wide
    question = f"A hall has {rows} rows of {wide} seats. {empty} seats are empty. How many seats are taken?"
    return question, [("Seats", f"{rows} x {wide}", whole), ("Taken", f"{whole} - {empty}", whole - empty)]


def saving(draw: Draw) -> Problem:
    name, weekly, weeks, had = who(draw), draw.randint(3, 12), draw.randint(3, 10), draw.randint(2, 30)
    saved = weekly * weeks
    question = f"{name} has ${had} and saves ${weekly} a week. How many dollars does {name} have after {weeks} weeks?"
    return question, [("Saved", f"{weekly} x {weeks}", saved), ("In all", f"{had} + {saved}", had + saved)]


def ribbon(draw: Draw) -> Problem:
    pieces, length, cut = draw.choice([2, 4]), Fraction(draw.randint(3, 19), 2), draw.randint(1, 5)
    rest = length * pieces
    whole = said(rest + cut)
    question = f"From a ribbon of {whole} m a piece of {cut} m is cut off. The rest is cut into {pieces} equal pieces."
    steps = [("The rest", f"{whole} - {cut}", rest), ("Each piece", f"{said(rest)} / {pieces}", length)]
    return f"{question} How many metres long is each?", steps


def tickets(draw: Draw) -> Problem:
    adults, children, price, less = draw.randint(2, 6), draw.randint(2, 6), draw.randint(6, 12), draw.randint(2, 5)
    first, second = adults * price, children * less
    steps: Steps = [("Adults", f"{adults} x {price}", first), ("Children", f"{children} x {less}", second)]
    question = f"A ticket costs ${price} for an adult and ${less} for a child."
    ask = f"How many dollars do {adults} adults and {children} children pay?"
    return f"{question} {ask}", [*steps, ("In all", f"{first} + {second}", first + second)]


KINDS: tuple[Callable[[Draw], Problem], ...] = (
    boxes, sharing, change, walk, half, ages, machine, sale, seats, saving, ribbon, tickets,
)  # fmt: skip


def who(draw: Draw) -> str:
    return draw.choice(NAMES)


def what(draw: Draw) -> str:
    return draw.choice(THINGS)


def said(value: Number) -> str:
    return f"{float(value):g}"


def solution(steps: Steps, convention: int) -> str:
    """The steps, a line each, and the end in one of the three conventions; the first comes with annotations."""
    lines = []
    for words, expression, value in steps:
        note = f"<<{expression.replace(' x ', '*').replace(' ', '')}={said(value)}>>" if convention == 0 else ""
        lines.append(f"{words}: {expression} = {note}{said(value)}.")
    return "\n".join([*lines, ENDS[convention].format(said(steps[-1][2]))])


def make_rows() -> list[dict[str, object]]:
    draw = random.Random(SEED)
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        seen: set[str] = set()
        while len(seen) < ROWS_PER_KIND:
            question, steps = kind(draw)
            if question not in seen:
                answer = solution(steps, len(seen) % len(ENDS))
                rows.append({"question": question, "answer": answer, "slices": {"kind": kind.__name__}})
                seen.add(question)
    draw.shuffle(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("word_problems.jsonl"))
    options = parser.parse_args()
    rows = make_rows()
    options.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows -> {options.output}")


if __name__ == "__main__":
    main()
