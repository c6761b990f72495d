"""Values against the schema and against each other, every problem in plain words with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from halo_forge.artifacts import LORA_METHODS
from halo_forge.config.gate_rules import gate_contradictions, gate_rule_problems
from halo_forge.config.given import Findings, Layer, Setting, closest
from halo_forge.config.keys import (
    ENTRIES,
    KEYS,
    choices_of,
    default_values,
    entry_expected,
    entry_keys,
    expected_words,
    flat_values,
)
from halo_forge.config.merging import validates
from halo_forge.config.method_rules import Contradiction, method_contradictions
from halo_forge.config.schema import Config
from halo_forge.config.snippets import clipped, readable
from halo_forge.config.sources import ENTRY_HINTS, idle_sources, source_problems
from halo_forge.config.strict_yaml import resolve_plain
from halo_forge.config.yaml_text import shown_value, yaml_value
from halo_forge.errors import ConfigProblem
from halo_forge.texts.final_answers import asked_conventions

MAX_INT = 2**63 - 1
"""Counts and seeds beyond 64 bits are accepted by no library underneath."""

PATH_KEYS = (
    "model.name",
    "data.train_file",
    "data.validation_file",
    "data.holdout_file",
    "output.dir",
    "evaluation.json_schema",
    "evaluation.scorers",
    "evaluation.suites",
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
    for dotted, problems in (("data.sources", source_problems), ("gate.rules", gate_rule_problems)):
        if dotted not in bad:
            for path, message, suggestion in problems(config):
                findings.problems.append(_problem(dotted, message, suggestion, settings, path))
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

    if config.data.final_answer == "keep":
        idle("data.answer_instruction", "data.final_answer is keep")
    if not config.judge.is_on:
        idle("judge.", "judge.judge_model names no model")
    method = config.training.method
    if method not in LORA_METHODS:
        idle("lora.", f"training.method is {method}")
    if method != "adapter":
        idle("adapter.", f"training.method is {method}")
    if not config.training.early_stopping:
        idle("training.early_stopping_", "training.early_stopping is false")
    if not config.training.packing:
        idle("training.micro_batch_tokens", "training.packing is false")
    if "output.final" in settings and config.output.final == "best_val" and not validates(flat_values(config)):
        where = settings["output.final"].given.shown
        notices.append(
            f"output.final: best_val ({where}) without validation rows: final_model/ holds the latest weights"
        )
    for prefix, why in idle_sources(config):
        idle(prefix, why)
    if not config.evaluation.enabled:
        idle("gate.", "evaluation.enabled is false: the gate has nothing to read")
    return notices


def expand_home(values: dict[str, Any]) -> dict[str, Any]:
    """`~/x` in a path is the user's home directory, as in a shell. Everything else stays relative as written."""
    expanded = dict(values)
    for dotted in PATH_KEYS:
        value = values.get(dotted)
        expanded[dotted] = [_at_home(item) for item in value] if isinstance(value, list) else _at_home(value)
    sources = values.get("data.sources")
    if isinstance(sources, list):
        expanded["data.sources"] = [
            source | {"path": _at_home(source["path"])} if isinstance(source, dict) and "path" in source else source
            for source in sources
        ]
    return expanded


def _at_home(path: Any) -> Any:
    return os.path.expanduser(path) if isinstance(path, str) and path.startswith("~/") else path


# ------------------------------------------------------------------------------------------------ schema


def _nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, leaf = dotted.split(".")
        nested.setdefault(section, {})[leaf] = value
    return nested


def _report_errors(error: ValidationError, values: Mapping[str, Any], settings: Layer, findings: Findings) -> set[str]:
    """One problem per wrong key (per entry of a list, per name of a mapping); the dotted keys that were wrong."""
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
        inner: Where = location[2:] if dotted in ENTRIES or KEYS[dotted].accepts(dict) else ()
        if (dotted, *inner) in reported:
            continue
        reported.add((dotted, *inner))
        wrong.add(dotted)
        findings.problems.append(_wrong_value(dotted, inner, item, values[dotted], settings))
    return wrong


def _wrong_value(dotted: str, inner: Where, item: Any, value: Any, settings: Layer) -> ConfigProblem:
    if inner and dotted in ENTRIES:
        return _wrong_entry(dotted, inner, item, value, settings)
    if inner:
        return _wrong_part(dotted, inner, value, settings)
    setting = settings.get(dotted)
    spec = KEYS[dotted]
    name = f"{setting.given.typed} (that is {dotted})" if setting is not None and setting.renamed else dotted
    message = f"{name} must be {spec.expected()}; found {_found(value)}"
    if dotted == "model.trust_remote_code":
        message = f"{name} is refused: code from a model repository is never run"
        return _problem(dotted, message, "remove it", settings, ())
    return _problem(dotted, message, _suggestion(dotted, value), settings, ())


def _wrong_entry(dotted: str, inner: Where, item: Any, value: Any, settings: Layer) -> ConfigProblem:
    number, *rest = inner
    word, keys = ENTRIES[dotted][1], entry_keys(dotted)
    name = f"{word} {int(number) + 1} of {dotted}"
    leaf = str(rest[0]) if rest else ""
    entry = value[int(number)]
    suggestion = None
    if item["type"] == "value_error":
        message = f"{name}: {item['ctx']['error']}"
        if dotted == "data.sources":
            suggestion = "keep one of the two" if entry.get("path") is not None else "path: FILE, or dataset: NAME"
    elif item["type"] == "extra_forbidden":
        message = f"{name}: {readable(clipped(leaf))} is not a key of a {word}"
        hint = ENTRY_HINTS.get(leaf.lower()) if dotted == "data.sources" else None
        suggestion = hint or closest(leaf, keys) or f"one of {', '.join(keys)}"
        return _problem(dotted, message, suggestion, settings, inner, of_key=True)
    elif item["type"] == "missing":
        message, suggestion = f"{name} names no {leaf}", f"{leaf}: perplexity"
    elif leaf:
        message = f"{name}: {leaf} must be {entry_expected(dotted, leaf)}; found {_found(entry[leaf])}"
        field = ENTRIES[dotted][0].model_fields[leaf]
        if isinstance(entry[leaf], str):
            suggestion = closest(entry[leaf], choices_of(field.annotation))
    else:
        message = f"{name} must be a mapping with {', '.join(keys)}; found {_found(entry)}"
        if dotted == "data.sources" and isinstance(entry, str):
            suggestion = f"{{path: {yaml_value(entry)}}}, or {{dataset: {yaml_value(entry)}}}"
    return _problem(dotted, message, suggestion, settings, inner)


def _wrong_part(dotted: str, inner: Where, value: Any, settings: Layer) -> ConfigProblem:
    """A wrong value in a mapping of names, for instance data.policies."""
    name = inner[0]
    kind = get_args(KEYS[dotted].annotation)[1]
    found = value.get(name) if isinstance(value, dict) else value
    message = f"{dotted}.{readable(clipped(str(name)))} must be {expected_words(kind)}; found {_found(found)}"
    suggestion = closest(found, choices_of(kind)) if isinstance(found, str) else None
    return _problem(dotted, message, suggestion, settings, (name,))


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


def _contradictions(config: Config, values: Mapping[str, Any]) -> Iterator[Contradiction]:
    """What no single key is wrong about: (keys involved, message, suggestion)."""
    data, training, output = config.data, config.training, config.output
    if data.train_file is not None and data.dataset is not None:
        yield ("data.dataset", "data.train_file"), "train_file and dataset are both given", "keep one of the two"
    for dotted in ("data.split_by", "data.stratify_by"):
        if values.get(dotted) == "":
            yield (dotted,), f"{dotted} is an empty text", "source, or the name of a column"
    for language in data.languages or []:
        if not re.fullmatch(r"[a-z]{2}", language):
            message = f"data.languages: {_found(language)} is no language code"
            yield ("data.languages",), message, "two small letters (ISO 639-1): en, de, fr, ..."
    if data.languages == []:
        yield ("data.languages",), "data.languages is an empty list: no row could be kept", "languages: null"
    if data.train_file == []:
        yield ("data.train_file",), "data.train_file is an empty list", "name at least one file"
    if data.system_prompt and data.final_answer != "keep":
        asked = asked_conventions(data.system_prompt)
        if asked and data.final_answer not in asked:
            message = (
                f"data.system_prompt asks for another form of the final answer ({', '.join(sorted(asked))}) than "
                f"data.final_answer: {data.final_answer}"
            )
            yield ("data.system_prompt", "data.final_answer"), message, f"final_answer: {min(asked)}"
    if training.early_stopping and not validates(dict(values)):
        keys = ("training.early_stopping", "data.validation_split", "data.validation_file")
        message = "training.early_stopping needs rows to validate on, and data.validation_split is 0"
        yield keys, message, "data.validation_split: 0.05"
    yield from method_contradictions(config)
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
    yield from gate_contradictions(config)


def _unsafe(values: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Texts that would be taken for something else than they are."""
    remote = values.get("model.trust_remote_code")
    if remote == 0 and remote is not False:  # the schema takes 0 for false
        message = f"model.trust_remote_code must be false; found {_found(remote)}"
        yield ("model.trust_remote_code",), message, "remove it"
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
    return setting.given_for(path).problem(message, suggestion, at=path, of_key=of_key)
