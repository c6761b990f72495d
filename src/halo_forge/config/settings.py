"""From what was typed (file, environment, --set, flags, preset) to settings of our dotted keys.

Each source becomes one layer: dotted key -> `Setting`, with other tools' names translated and reported, and every key
that means nothing reported as a problem. Nothing is validated here beyond what the names need.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from halo_forge.config.alias_datasets import MIXING, shares_of
from halo_forge.config.alias_methods import FREEZE, FROZEN_TRAINABLE, METHOD_NAMES
from halo_forge.config.alias_rules import Misfit, NotOffered, Path, Reading, is_empty
from halo_forge.config.aliases import ADAPTER, ALIASES, AXOLOTL_MARK, TRANSFORMERS_MARK
from halo_forge.config.given import Findings, Given, Layer, Setting, closest
from halo_forge.config.keys import DOTTED_BY_LEAF, KEYS, SECTIONS
from halo_forge.config.snippets import clipped, holds_secret, names_secret, readable, without_secrets
from halo_forge.config.strict_yaml import Document, Entry, parse_value
from halo_forge.config.yaml_text import shown_value
from halo_forge.errors import ConfigError, ConfigProblem

ENVIRONMENT_PREFIX = "HALO_FORGE__"
MAX_SUGGESTIONS = 25
"""Unknown keys of one load that get a did-you-mean; comparing thousands would take longer than reading the list."""

_SWITCH_WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}

# ------------------------------------------------------------------------------------------------ sources


def file_layer(document: Document, findings: Findings) -> Layer:
    """Settings of a configuration file: sections, or the flat keys of other tools."""
    givens: list[Given] = []
    for key, entry in document.entries().items():
        if key in SECTIONS and isinstance(entry.node.value, dict):
            givens.extend(_given_in(document, key, inner) for inner in entry.node.value.values())
        elif key in SECTIONS and key not in ALIASES:
            if entry.node.value is not None:
                given = _given_in(document, None, entry)
                leaf = next(spec.leaf for spec in KEYS.values() if spec.section == key)
                message = f"{key} is a section of keys; found {shown_value(given.value)}"
                findings.problems.append(given.problem(message, f"{key}: {{{leaf}: ...}}", at=()))
        else:
            givens.append(_given_in(document, None, entry))
    layer = _layer(givens, findings)
    _assume_method(document, layer, findings)
    _assume_trainable(givens, layer, findings)
    return layer


def environment_layer(environment: Mapping[str, str], findings: Findings) -> Layer:
    """Settings from HALO_FORGE__SECTION__KEY variables."""
    givens = []
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            givens.extend(_typed(path, environment[name], f"environment {name}", f"environment {name}", findings))
    return _layer(givens, findings)


def overrides_layer(overrides: Sequence[str], findings: Findings) -> Layer:
    """Settings from `--set a.b=c`; of several for one key the last counts, and that is said."""
    layer: Layer = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            message = f"{readable(clipped(without_secrets(override)))!r} sets nothing"
            suggestion = "--set training.learning_rate=1e-4"
            findings.problems.append(ConfigProblem(message=message, where="--set", suggestion=suggestion))
            continue
        one = _layer(_typed(name.strip().split("."), text, "--set", "--set", findings), findings)
        for dotted, setting in one.items():
            if dotted in layer and (setting.given.part is None or setting.given.part in layer[dotted].value):
                value = setting.value if setting.given.part is None else setting.value[setting.given.part]
                name = dotted if setting.given.part is None else setting.given.typed
                findings.notices.append(f"{name} is set twice by --set: {shown_value(value)} counts")
            layer[dotted] = setting.joined_to(layer.get(dotted))
    return layer


def flags_layer(flags: Mapping[str, tuple[Any, str]], findings: Findings) -> Layer:
    """Settings from command-line flags: dotted key -> (value, flag as typed). Raises KeyError for a key of ours that
    does not exist: that is the command line's mistake, not the user's."""
    layer = _direct_layer({dotted: (value, flag, flag) for dotted, (value, flag) in flags.items()})
    return {dotted: setting for dotted, setting in layer.items() if not _refuse_secret(setting.given, findings)}


def preset_layer(preset: Mapping[str, Any], name: str | None) -> Layer:
    """Settings of a domain's defaults. Raises KeyError for an unknown dotted key."""
    origin = f"preset {name}" if name else "preset"
    return _direct_layer({dotted: (value, origin, origin) for dotted, value in preset.items()})


def _direct_layer(values: Mapping[str, tuple[Any, str, str]]) -> Layer:
    layer: Layer = {}
    for dotted, (value, origin, shown) in values.items():
        spec = KEYS[dotted]
        plain = str(value) if hasattr(value, "__fspath__") else list(value) if isinstance(value, tuple) else value
        layer[dotted] = Setting(dotted, plain, Given(spec.section, spec.leaf, plain, origin, shown))
    return layer


def _given_in(document: Document, section: str | None, entry: Entry) -> Given:
    origin = f"{document.name}:{entry.place.line}"
    value = entry.node.to_plain()
    return Given(section, entry.key, value, origin, f"line {entry.place.line}", document, entry)


def _typed(path: list[str], text: str, origin: str, shown: str, findings: Findings) -> list[Given]:
    try:
        value = parse_value(text, origin)
    except ConfigError as error:
        findings.problems.extend(error.problems)
        return []
    section, key = (path[0], ".".join(path[1:])) if len(path) > 1 else (None, path[0])
    given = Given(section, key, value, origin, shown, text=text.strip())
    whole = ".".join(path[:2])
    if len(path) > 2 and whole in KEYS and KEYS[whole].accepts(dict):
        part = ".".join(path[2:])
        return [Given(path[0], path[1], {part: value}, origin, shown, text=text.strip(), part=part)]
    if len(path) > 2 and whole in KEYS:
        findings.problems.append(given.problem(f"{given.typed} is a part of {whole}", f"set {whole} as a whole"))
        return []
    return [given]


# ------------------------------------------------------------------------------------------------ names


def _layer(givens: Sequence[Given], findings: Findings) -> Layer:
    layer: Layer = {}
    for given in givens:
        if _refuse_secret(given, findings):
            continue
        for setting in _settings(given, findings):
            earlier = layer.setdefault(setting.dotted, setting)
            if earlier is not setting and setting.given.part is not None:
                layer[setting.dotted] = setting.joined_to(earlier)
            elif earlier is not setting and _refined(earlier, setting) is not None:
                layer[setting.dotted] = _refined(earlier, setting) or setting
            elif earlier is not setting and earlier.value != setting.value:
                message = (
                    f"{given.typed} and {earlier.given.typed} ({earlier.given.shown}) both set {setting.dotted}, "
                    f"to {shown_value(setting.value)} and {shown_value(earlier.value)}"
                )
                findings.problems.append(given.problem(message, "keep one of the two"))
    for given in givens:
        if given.key in MIXING:
            _share_out(given, layer, findings)
    return layer


def _share_out(given: Given, layer: Layer, findings: Findings) -> None:
    """Weights that another tool writes beside its list of data sets become the shares of data.sources."""
    shares = shares_of(given.key, given.value)
    setting = layer.get("data.sources")
    if shares is None or (setting is None and given.key == "mix_strategy"):
        return
    if setting is None or not isinstance(setting.value, list) or len(shares) not in (0, len(setting.value)):
        count = len(setting.value) if setting is not None and isinstance(setting.value, list) else 0
        message = f"{given.typed} holds {len(shares)} weights and the data sets are {count}"
        findings.problems.append(given.problem(message, "a weight for each data set", at=()))
        return
    if not shares and any("share" in entry for entry in setting.value):
        return  # mix_strategy beside explicit weights
    entries = [
        entry | {"share": share}
        for entry, share in zip(setting.value, shares or [1.0] * len(setting.value), strict=True)
    ]
    layer["data.sources"] = Setting("data.sources", entries, setting.given)


def _settings(given: Given, findings: Findings) -> Iterator[Setting]:
    own = f"{given.section}.{given.key}" if given.section else None
    if own not in KEYS:
        own = None
    if own is None and given.key not in ALIASES and given.section is None:
        candidates = DOTTED_BY_LEAF.get(given.key, ())
        own = candidates[0] if len(candidates) == 1 else None
    rule = ALIASES.get(own if own is not None else given.key)
    if rule is not None and own is None and given.section and rule.section not in (None, given.section):
        rule = None
    if own is None and rule is None:
        _refuse_unknown(given, findings)
        return
    value = _switch(own or (rule.renames if rule is not None else None), given.value)
    if own is None and is_empty(value):
        if given.key != ADAPTER:  # `_assume_method` says what an empty adapter means
            findings.notices.append(f"{given.typed} ({given.shown}) is empty: nothing is set")
        return
    try:
        reading = rule.read(value) if rule is not None and value is not None else Reading({own or "": value})
    except NotOffered as refusal:
        findings.problems.append(given.problem(f"{given.typed}: {refusal.why}", refusal.instead, at=refusal.path))
        return
    except Misfit as misfit:
        message = f"{given.typed} must be {misfit.expected}; found {shown_value(given.value)}"
        findings.problems.append(given.problem(message, at=misfit.path))
        return
    _report(given, own, reading, findings)
    for dotted, meant in reading.values.items():
        yield Setting(dotted, _as_typed(dotted, meant, given), given)


def _report(given: Given, own: str | None, reading: Reading, findings: Findings) -> None:
    """One notice for a key or value that is not ours, none for one that is."""
    unchanged = len(reading.values) == 1 and next(iter(reading.values.values())) == given.value
    if not reading.values:
        note = f": {reading.note}" if reading.note else ""
        findings.notices.append(f"{given.typed}: {shown_value(given.value)} ({given.shown}){note}")
    elif unchanged and own in reading.values and given.section is not None:
        return
    elif unchanged:
        tail = f"; {reading.note}" if reading.note else ""
        findings.notices.append(f"{given.typed} ({given.shown}) means {next(iter(reading.values))}{tail}")
    else:
        meant = ", ".join(f"{dotted}: {shown_value(value)}" for dotted, value in reading.values.items())
        tail = f"; {reading.note}" if reading.note else ""
        typed = given.typed if isinstance(given.value, dict | list) else f"{given.typed}: {shown_value(given.value)}"
        findings.notices.append(f"{typed} ({given.shown}) means {meant}{tail}")


def _switch(dotted: str | None, value: Any) -> Any:
    """yes, no, on, off are text to YAML 1.2; where only true or false can be meant, they are that."""
    if dotted is None or not isinstance(value, str) or not KEYS[dotted].accepts(bool):
        return value
    return _SWITCH_WORDS.get(value.lower(), value)


def _as_typed(dotted: str, value: Any, given: Given) -> Any:
    """`--set publish.name=007` is text, because the key takes text."""
    spec = KEYS[dotted]
    if given.text is None or value != given.value or value is None or isinstance(value, str | list | dict):
        return value
    return given.text if spec.accepts(str) and not spec.accepts(type(value)) else value


def _assume_method(document: Document, layer: Layer, findings: Findings) -> None:
    """What the missing adapter key of a flat file means in the tool that the file was written for."""
    entries = document.entries()
    adapter = entries.get(ADAPTER)
    if "training.method" in layer or (adapter is not None and not is_empty(adapter.node.value)):
        return
    if AXOLOTL_MARK in entries or adapter is not None:
        given = _given_in(document, None, adapter or entries[AXOLOTL_MARK])
        layer["training.method"] = Setting("training.method", "full", given)
        words = f"adapter ({given.shown}) is empty" if adapter else f"{AXOLOTL_MARK} ({given.shown}) without adapter"
        findings.notices.append(f"{words}: training.method is full")
    elif TRANSFORMERS_MARK in entries:
        line = entries[TRANSFORMERS_MARK].place.line
        findings.notices.append(
            f"{TRANSFORMERS_MARK} (line {line}) without use_peft or finetuning_type: "
            "training.method is not set by this file (TRL would train every weight, LLaMA-Factory adapters)"
        )


def _refined(one: Setting, other: Setting) -> Setting | None:
    """`adapter: lora` and `use_dora: true` in one file: other tools write a kind of LoRA as a switch beside it."""
    if one.dotted != "training.method" or {one.value, other.value} not in ({"lora", "dora"}, {"lora", "qlora"}):
        return None
    return one if other.value == "lora" else other


def _assume_trainable(givens: Sequence[Given], layer: Layer, findings: Findings) -> None:
    """LLaMA-Factory's `finetuning_type: freeze` trains the last two layers where nothing else is said."""
    given = next((given for given in givens if given.key in METHOD_NAMES and given.value == FREEZE), None)
    if given is not None and "training.trainable" not in layer:
        layer["training.trainable"] = Setting("training.trainable", list(FROZEN_TRAINABLE), given)
        findings.notices.append(f"{given.typed} ({given.shown}) means training.trainable: {FROZEN_TRAINABLE[0]}")


# ------------------------------------------------------------------------------------------------ refusals


def _refuse_secret(given: Given, findings: Findings) -> bool:
    found = [(path, text) for path, text in _texts(given.value, ()) if holds_secret(text)]
    if holds_secret(given.key):
        found.append(((), given.key))
    for path, _ in found:
        message = f"{without_secrets(given.typed)} holds what looks like a secret; a configuration is kept and shared"
        suggestion = "remove it here, revoke it if it was shared, and set it in the environment (for the Hub: HF_TOKEN)"
        findings.problems.append(given.problem(message, suggestion, at=path))
    return bool(found)


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), str(key)
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*path, number))


def _refuse_unknown(given: Given, findings: Findings) -> None:
    findings.num_unknown += 1
    if names_secret(given.key):
        message = f"{given.typed} asks for a secret; a configuration never holds one"
        findings.problems.append(given.problem(message, "set it in the environment (for the Hub: HF_TOKEN)"))
        return
    if given.section is None and given.key in SECTIONS:
        leaf = next(spec.leaf for spec in KEYS.values() if spec.section == given.key)
        findings.problems.append(given.problem(f"{given.key} is a section of keys", f"{given.key}.{leaf}=..."))
        return
    if given.section is not None and given.section not in SECTIONS:
        words, suggestion = f"{readable(clipped(given.section))} is not a section", closest(given.section, SECTIONS)
        findings.problems.append(given.problem(words, suggestion or f"one of {', '.join(SECTIONS)}"))
        return
    message, suggestion = _unknown_words(given, findings.num_unknown <= MAX_SUGGESTIONS)
    findings.problems.append(given.problem(message, suggestion))


def _unknown_words(given: Given, compare: bool) -> tuple[str, str | None]:
    homes = list(DOTTED_BY_LEAF.get(given.key, ()))
    rule = ALIASES.get(given.key)
    if rule is not None and rule.section is not None:
        homes = [rule.renames or f"{rule.section}.{given.key}"]
    if homes and given.section is not None:
        section, leaf = homes[0].split(".")
        return (
            f"{given.typed} is in the wrong section: {given.key} belongs under {section}",
            f"{section}: {{{leaf}: ...}}",
        )
    if homes:
        return f"{given.key} stands in more than one section", " or ".join(homes)
    message = f"{given.typed} is not a key of this configuration"
    if not compare:
        return message, None
    if given.section is None:
        dotted = given.key if given.key in KEYS else None
        if dotted is not None:
            section, leaf = dotted.split(".")
            return message, f"{section}: {{{leaf}: ...}}"
        names = SECTIONS if isinstance(given.value, dict) else (*DOTTED_BY_LEAF, *SECTIONS, *_other_names(None))
        return message, closest(given.key, names)
    here = [spec.leaf for spec in KEYS.values() if spec.section == given.section]
    near = closest(given.key, [*here, *_other_names(given.section)])
    if near is not None:
        return message, near
    elsewhere = difflib.get_close_matches(given.key.lower(), list(DOTTED_BY_LEAF), n=1, cutoff=0.75)
    return message, f"did you mean {DOTTED_BY_LEAF[elsewhere[0]][0]}?" if elsewhere else None


def _other_names(section: str | None) -> list[str]:
    return [name for name, rule in ALIASES.items() if "." not in name and section in (None, rule.section)]
