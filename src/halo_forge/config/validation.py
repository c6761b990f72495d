"""Values against the schema and against each other, every problem in plain words with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from halo_forge.config.keys import KEYS, default_values, flat_values, rule_expected, rule_keys
from halo_forge.config.merging import validates
from halo_forge.config.schema import Config
from halo_forge.config.settings import Findings, Layer, Setting, closest
from halo_forge.config.snippets import clipped, readable
from halo_forge.config.strict_yaml import resolve_plain
from halo_forge.config.yaml_text import shown_value, yaml_value
from halo_forge.errors import ConfigProblem

MAX_INT = 2**63 - 1
"""Counts and seeds beyond 64 bits are accepted by no library underneath."""

PATH_KEYS = (
    "model.name",
    "data.train_file",
    "data.validation_file",
    "data.holdout_file",
    "output.dir",
    "evaluation.json_schema",
    "publish.registry",
)

Where = tuple[str | int, ...]


def validated(values: Mapping[str, Any], settings: Layer, findings: Findings) -> Config:
    """Build the Config. Problems go to `findings`; the result is of use only if there are none.

    A bad value is set aside and the rest checked again, because pydantic does not compare the keys of a section
    while one of them is wrong.
    """
    values = dict(values)
    defaults = default_values()
    bad: set[str] = set()
    for dotted in [key for key in values if _too_large(values[key])]:
        number = f"{dotted} holds a whole number beyond 64 bits"
        findings.problems.append(_problem(dotted, number, None, settings, ()))
        values[dotted] = defaults[dotted]
        bad.add(dotted)
    while True:
        try:
            config = Config.model_validate(_nested(values), strict=True)
            break
        except ValidationError as error:
            wrong = _report_errors(error, values, settings, findings)
            bad |= wrong
            values.update({dotted: defaults[dotted] for dotted in wrong})
    for keys, message, suggestion in (*_contradictions(config, values), *_unsafe(values)):
        if not bad.intersection(keys):
            culprit = next((key for key in keys if key in settings), keys[0])
            findings.problems.append(_problem(culprit, message, suggestion, settings, ()))
    return config


def unused(config: Config, settings: Layer) -> list[str]:
    """Notices for values that were set and do nothing in this configuration."""
    notices = []
    defaults = default_values()

    def idle(prefix: str, why: str) -> None:
        keys = [
            f"{dotted} ({setting.given.shown})"
            for dotted, setting in settings.items()
            if dotted.startswith(prefix) and setting.value != defaults[dotted]
        ]
        if keys:
            notices.append(f"{', '.join(keys)}: not used, because {why}")

    if config.training.method == "full":
        idle("lora.", "training.method is full")
    if not config.training.early_stopping:
        idle("training.early_stopping_", "training.early_stopping is false")
    if not config.training.packing:
        idle("training.micro_batch_tokens", "training.packing is false")
    if "output.final" in settings and config.output.final == "best_val" and not validates(flat_values(config)):
        where = settings["output.final"].given.shown
        notices.append(
            f"output.final: best_val ({where}) without validation rows: final_model/ holds the latest weights"
        )
    if not config.evaluation.enabled:
        idle("gate.", "evaluation.enabled is false: the gate has nothing to read")
    return notices


def expand_home(values: dict[str, Any]) -> dict[str, Any]:
    """`~/x` in a path is the user's home directory, as in a shell. Everything else stays relative as written."""
    expanded = dict(values)
    for dotted in PATH_KEYS:
        value = values.get(dotted)
        if isinstance(value, str) and value.startswith("~/"):
            expanded[dotted] = os.path.expanduser(value)
        elif isinstance(value, list):
            expanded[dotted] = [
                os.path.expanduser(item) if isinstance(item, str) and item.startswith("~/") else item for item in value
            ]
    return expanded


# ------------------------------------------------------------------------------------------------ schema


def _nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, leaf = dotted.split(".")
        nested.setdefault(section, {})[leaf] = value
    return nested


def _report_errors(error: ValidationError, values: Mapping[str, Any], settings: Layer, findings: Findings) -> set[str]:
    """One problem per wrong key (per entry of gate.rules); the dotted keys that were wrong."""
    wrong: set[str] = set()
    reported: set[Where] = set()
    for item in error.errors(include_url=False, include_input=False):
        location = tuple(item["loc"])
        if len(location) < 2:  # a rule between the keys of a section
            text = str(item.get("ctx", {}).get("error", item["msg"]))
            keys = [f"{location[0]}.{word}" for word in re.findall(r"\w+", text)]
            named = [key for key in keys if key in KEYS]
            culprit = next((key for key in named if key in settings), named[0] if named else f"{location[0]}.")
            findings.problems.append(_problem(culprit, text, None, settings, ()))
            wrong.update(named or [key for key in KEYS if key.startswith(f"{location[0]}.")])
            continue
        dotted = f"{location[0]}.{location[1]}"
        inner: Where = location[2:] if dotted == "gate.rules" else ()
        if (dotted, *inner) in reported:
            continue
        reported.add((dotted, *inner))
        wrong.add(dotted)
        findings.problems.append(_wrong_value(dotted, inner, item, values[dotted], settings))
    return wrong


def _wrong_value(dotted: str, inner: Where, item: Any, value: Any, settings: Layer) -> ConfigProblem:
    if inner:
        return _wrong_rule(dotted, inner, item, value, settings)
    setting = settings.get(dotted)
    spec = KEYS[dotted]
    name = f"{setting.given.typed} (that is {dotted})" if setting is not None and setting.renamed else dotted
    message = f"{name} must be {spec.expected()}; found {_found(value)}"
    if dotted == "model.trust_remote_code":
        message = f"{name} is refused: code from a model repository is never run"
        return _problem(dotted, message, "remove it", settings, ())
    return _problem(dotted, message, _suggestion(dotted, value), settings, ())


def _wrong_rule(dotted: str, inner: Where, item: Any, value: Any, settings: Layer) -> ConfigProblem:
    number, *rest = inner
    name = f"rule {int(number) + 1} of {dotted}"
    leaf = str(rest[0]) if rest else ""
    suggestion = None
    if item["type"] == "value_error":
        message = f"{name}: {item['ctx']['error']}"
    elif item["type"] == "extra_forbidden":
        message = f"{name}: {readable(clipped(leaf))} is not a key of a rule"
        suggestion = closest(leaf, rule_keys()) or f"one of {', '.join(rule_keys())}"
        return _problem(dotted, message, suggestion, settings, inner, of_key=True)
    elif item["type"] == "missing":
        message, suggestion = f"{name} names no {leaf}", f"{leaf}: perplexity"
    elif leaf:
        message = f"{name}: {leaf} must be {rule_expected(leaf)}; found {_found(value[int(number)][leaf])}"
    else:
        message = f"{name} must be a mapping with {', '.join(rule_keys())}; found {_found(value[int(number)])}"
    return _problem(dotted, message, suggestion, settings, inner)


def _found(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {shown_value(value)}" if value else "an empty text"
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict | list):
        return shown_value(value) if not value or isinstance(value, dict) else f"the list {shown_value(value)}"
    return shown_value(value)


def _suggestion(dotted: str, value: Any) -> str | None:
    spec = KEYS[dotted]
    leaf = spec.leaf
    if isinstance(value, str):
        if near := closest(value, spec.choices()):
            return near
        bare = value.strip().replace("_", "").replace(",", "")
        try:
            number = resolve_plain(bare)
        except ValueError:
            return None
        kinds = (int, float) if type(number) is int else (type(number),)
        if number is not None and not isinstance(number, str) and any(spec.accepts(kind) for kind in kinds):
            return f"{leaf}: {bare}"
        return f"{leaf}: [{yaml_value(value)}]" if spec.accepts(list) else None
    if isinstance(value, float) and value.is_integer() and spec.accepts(int):
        return f"{leaf}: {int(value)}"
    if isinstance(value, int | float) and spec.accepts(str):
        return f'{leaf}: "{shown_value(value)}"'
    if value == 0 and spec.accepts(type(None)):
        return f"{leaf}: null"
    return None


def _too_large(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_too_large(item) for item in value.values())
    if isinstance(value, list):
        return any(_too_large(item) for item in value)
    return isinstance(value, int) and abs(value) > MAX_INT


# ------------------------------------------------------------------------------------------------ between keys

Contradiction = tuple[tuple[str, ...], str, str | None]


def _contradictions(config: Config, values: Mapping[str, Any]) -> Iterator[Contradiction]:
    """What no single key is wrong about: (keys involved, message, suggestion)."""
    data, training, output = config.data, config.training, config.output
    if data.train_file is not None and data.dataset is not None:
        yield ("data.dataset", "data.train_file"), "train_file and dataset are both given", "keep one of the two"
    if data.train_file == []:
        yield ("data.train_file",), "data.train_file is an empty list", "name at least one file"
    if training.early_stopping and not validates(dict(values)):
        keys = ("training.early_stopping", "data.validation_split", "data.validation_file")
        message = "training.early_stopping needs rows to validate on, and data.validation_split is 0"
        yield keys, message, "data.validation_split: 0.05"
    if config.lora.target_modules == [] and training.method == "lora":
        message = "lora.target_modules is an empty list: no layer would get an adapter"
        yield ("lora.target_modules",), message, "target_modules: all-linear"
    if os.path.normpath(output.dir) == os.path.normpath(config.model.name):
        message = "output.dir is the directory of the model that training starts from"
        yield ("output.dir", "model.name"), message, "give another output.dir"
    if _inside(output.dir, config.publish.registry):
        message = "output.dir lies inside publish.registry, which only holds released versions"
        yield ("output.dir", "publish.registry"), message, "give another output.dir"
    files = [data.train_file] if isinstance(data.train_file, str) else data.train_file or []
    if any(os.path.normpath(os.path.dirname(file) or ".") == os.path.normpath(output.dir) for file in files):
        message = "output.dir is the directory that the training rows lie in"
        yield ("output.dir", "data.train_file"), message, "give another output.dir"
    for number, rule in enumerate(config.gate.rules, start=1):
        if rule.min is not None and rule.max is not None and rule.min > rule.max:
            message = f"rule {number} of gate.rules can never hold: min {rule.min:g} is above max {rule.max:g}"
            yield ("gate.rules",), message, None
        if rule.metric == "schema_valid" and config.evaluation.json_schema is None:
            message = f"rule {number} of gate.rules reads schema_valid, and evaluation.json_schema names no schema"
            yield ("gate.rules", "evaluation.json_schema"), message, "evaluation.json_schema: FILE"


def _unsafe(values: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Texts that would be taken for something else than they are."""
    name = values.get("publish.name")
    if isinstance(name, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", name):
        message = f"publish.name must be letters, digits, dots, dashes and underscores; found {_found(name)}"
        yield ("publish.name",), message, None
    for dotted in PATH_KEYS:
        value = values.get(dotted)
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            if not text.strip():
                yield (dotted,), f"{dotted} is an empty text", None
            elif reference := re.search(r"\$\{?[A-Za-z_]\w*\}?", text):
                variable = f"HALO_FORGE__{dotted.replace('.', '__').upper()}"
                message = f"{dotted}: {reference.group()} is not replaced by the environment's value"
                yield (dotted,), message, f"write the path out, or set {variable}"
            elif not text.isprintable():
                yield (dotted,), f"{dotted} holds a character that does not belong into a path", None


def _inside(path: str, directory: str) -> bool:
    inner, outer = os.path.normpath(path), os.path.normpath(directory)
    return inner == outer or inner.startswith(outer + os.sep)


def _problem(
    dotted: str, message: str, suggestion: str | None, settings: Layer, path: Where, *, of_key: bool = False
) -> ConfigProblem:
    setting: Setting | None = settings.get(dotted)
    if setting is None:
        return ConfigProblem(message=message, where=f"default of {dotted}", suggestion=suggestion)
    return setting.given.problem(message, suggestion, at=path, of_key=of_key)
