"""lm-eval, with its rows from a local tree and without what it does at import.

Three things are changed, each only while a task is loaded and run here:

rows        a data set that lies in the tree (openai/gsm8k/README.md names its files) is read from there; anything else
            is looked up as `datasets` does
humaneval   lm-eval's module for it loads a metric from the Hub and runs code in this process, both at import; the task
            is built without that module, its programs come back unrun
ifeval      lm-eval's module fetches nltk's sentence model at import and cannot count sentences without it; where that
            model is missing, sentences are counted by the rules in the same module
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module, metadata, util
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from halo_forge.errors import UsageError
from halo_forge.runs import cache_directory, sha256_json

INSTALL = 'pip install "halo-forge[bench]"'
HUMANEVAL = ("humaneval", "humaneval_instruct")
CODE_FILTER = "create_test"


def require_lm_eval() -> str:
    """Its version. UsageError where it is not installed."""
    if util.find_spec("lm_eval") is None:
        raise UsageError("benchmarks need lm-eval, which is not installed", fix=INSTALL)
    return metadata.version("lm_eval")


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's log, warnings, bars and words on stdout: what matters is told by us."""
    logger = logging.getLogger("lm_eval")
    task: Any = import_module("lm_eval.api.task")
    datasets = import_module("datasets")
    level, bar, had_bars = logger.level, task.tqdm, not datasets.utils.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    task.tqdm = _no_bar
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar
        if had_bars:
            datasets.enable_progress_bars()


def _no_bar(items: Any, **_: Any) -> Any:
    return items


class _Rows:
    """lm-eval's `datasets`, with the tree looked at first."""

    def __init__(self, real: ModuleType, tree: Path | None) -> None:
        self._real, self._tree = real, tree

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def load_dataset(self, path: str, name: str | None = None, **how: Any) -> Any:
        local = None if self._tree is None else self._tree / path
        if local is not None and local.is_dir():
            path = str(local.resolve())
            # `datasets` names its copy after the folder alone: rows of another tree would come out of it.
            how = {**how, "cache_dir": str(_copy_of(local))}
        return self._real.load_dataset(path=path, name=name, **how)


def _copy_of(folder: Path) -> Path:
    """Where `datasets` keeps its copy of a folder as it is now."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.resolve().rglob("*"))]
    return cache_directory() / "benchmarks" / sha256_json(files)[:16]


@contextmanager
def rows_from(tree: Path | None) -> Iterator[None]:
    task: Any = import_module("lm_eval.api.task")
    real = task.datasets
    task.datasets = _Rows(real, tree)
    try:
        yield
    finally:
        task.datasets = real


def load_tasks(names: tuple[str, ...], tree: Path | None) -> tuple[dict[str, Any], list[str]]:
    """(lm-eval's tasks and groups as `evaluate` takes them, notes on what differs). Raises whatever lm-eval raises for
    a task that there is not or whose rows are not there."""
    from lm_eval.tasks import TaskManager

    notes = _mend_ifeval() if any(name.startswith("ifeval") for name in names) else []
    manager = TaskManager()
    with rows_from(tree):
        return manager.load([_specification(manager, name) for name in names]), notes


def known_tasks() -> list[str]:
    """Every task, group and tag that lm-eval has."""
    from lm_eval.tasks import TaskManager

    return sorted(TaskManager().all_tasks)


def run_tasks(loaded: dict[str, Any], model: Any, *, limit: int | None, chat_template: bool) -> dict[str, Any]:
    """lm-eval's results with the samples of every item."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # lm-eval's own
    found: dict[str, Any] = evaluate(
        lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True,
        apply_chat_template=chat_template, fewshot_as_multiturn=chat_template,
    )  # fmt: skip
    return found


def _specification(manager: Any, name: str) -> Any:
    if name not in HUMANEVAL:
        return name
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(manager.task_index[name].yaml_path, resolve_func=False)
    config["unsafe_code"] = False  # nothing is run here
    config["metric_list"] = [{"metric": "bypass"}]
    build = _to_fence if name.endswith("_instruct") else _whole
    config["filter_list"] = [{"name": CODE_FILTER, "filter": [{"function": "custom", "filter_fn": build}]}]
    return config


def _whole(answers: list[list[str]], rows: list[dict[str, Any]]) -> list[list[str]]:
    """Programs: each row's prompt with its answers."""
    return [[row["prompt"] + answer for answer in own] for own, row in zip(answers, rows, strict=True)]


def _to_fence(answers: list[list[str]], rows: list[dict[str, Any]]) -> list[list[str]]:
    return _whole([[answer.split("```")[0] for answer in own] for own in answers], rows)


def _mend_ifeval() -> list[str]:
    nltk: Any = import_module("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        name = "lm_eval.tasks.ifeval.instructions_util"
        module: Any = sys.modules.get(name)
        if module is None:
            real = nltk.download
            nltk.download = _fetch_nothing
            try:
                module = import_module(name)
            finally:
                nltk.download = real
        module.count_sentences = _sentence_counter(module.split_into_sentences)
        return ["ifeval: sentences are counted by lm-eval's rules, as nltk's punkt_tab is not on this machine"]
    return []


def _fetch_nothing(*_: Any, **__: Any) -> bool:
    return False


def _sentence_counter(split: Callable[[str], list[str]]) -> Callable[[str], int]:
    return lambda text: len(split(text))
