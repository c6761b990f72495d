"""The user's own scorers: `evaluation.scorers: [path/to/file.py:function]`.

    def brand_named(answer: str, reference: str, row: dict) -> float | None: ...

Each is called with the answer's text, the reference and the row's {"id", "source", "line", "prompt", "slices"}; None
says nothing about the item. The file is the user's own code and runs as such, in this process, like the program that
calls it: it is named in the configuration, never in data or by a model. A `direction` attribute of the function
("higher", "lower", "none") says which way is better; without one, higher is.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from halo_forge.artifacts import Direction
from halo_forge.errors import UsageError
from halo_forge.metrics import JUDGED_METRIC, METRIC_FACTS


@dataclass(frozen=True, slots=True)
class OwnScorer:
    """name is the function's, and the metric's. place is `file.py:function`."""

    name: str
    place: str
    path: Path
    direction: Direction
    score: Callable[[str, str, Mapping[str, Any]], object]


class ScorerFailed(Exception):
    """A scorer raised, or gave something that is no finite number; the message names file, function and item."""


def load_scorers(places: Sequence[str]) -> tuple[OwnScorer, ...]:
    """The functions, in order. UsageError names a file that is not there or cannot be run, a function that it lacks,
    and a name that is taken."""
    scorers: list[OwnScorer] = []
    for place in places:
        scorer = _load(place)
        if scorer.name in {*METRIC_FACTS, JUDGED_METRIC, *(other.name for other in scorers)}:
            raise UsageError(
                f"there is a metric {scorer.name!r} already", where=f"evaluation.scorers: {place}",
                fix="give the function another name",
            )  # fmt: skip
        scorers.append(scorer)
    return tuple(scorers)


def _load(place: str) -> OwnScorer:
    where = f"evaluation.scorers: {place}"
    file, _, name = place.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name.isidentifier():
        raise UsageError(
            "a scorer is a Python file and a function in it", where=where, expected="path/to/file.py:function"
        )
    if not path.is_file():
        raise UsageError("the scorer's file is not there", where=where, expected=f"a Python file at {path.absolute()}")
    spec = importlib.util.spec_from_file_location(f"halo_forge_scorers_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError("the scorer's file is no Python file", where=where, expected="path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"the scorer's file cannot be run: {_told(error)}", where=where) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{path.name} has no function {name}", where=where)
    direction = getattr(function, "direction", "higher")
    if direction not in get_args(Direction):
        raise UsageError(
            f"{name}.direction is {direction!r}", where=where, expected=f"one of {', '.join(get_args(Direction))}"
        )
    return OwnScorer(name, f"{path.name}:{name}", path, direction, function)


def own_score(scorer: OwnScorer, text: str, reference: str, row: Mapping[str, Any]) -> float:
    """nan where the scorer says nothing. Raises ScorerFailed."""
    try:
        score = scorer.score(text, reference, row)
    except Exception as error:
        raise ScorerFailed(f"{scorer.place} raised on item {row['id']}: {_told(error)}") from error
    if score is None:
        return math.nan
    # numpy's scalars and bool are Real; a text of digits is not.
    if not isinstance(score, Real) or not math.isfinite(score):
        raise ScorerFailed(f"{scorer.place} gave {str(score)[:80]!r} for item {row['id']}, which is no finite number")
    return float(score)


def _told(error: Exception) -> str:
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
