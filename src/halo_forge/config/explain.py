"""A configuration shown: each value with its origin, as a YAML file, as a JSON Schema, and as a difference."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from halo_forge.config.keys import ENTRIES, KEYS, SECTION_MEANING, SECTIONS, entry_settings, flat_values
from halo_forge.config.load import ResolvedConfig
from halo_forge.config.schema import Config
from halo_forge.config.yaml_text import yaml_value

_WIDTH = 110


def explain_config(resolved: ResolvedConfig) -> list[tuple[str, str, str]]:
    """(dotted key, value as YAML, origin) for every key in the schema's order. A learning rate that follows from the
    method is shown with its value."""
    values = _shown_values(resolved.config)
    values["training.learning_rate"] = resolved.config.learning_rate
    return [(dotted, yaml_value(values[dotted]), resolved.origins[dotted]) for dotted in KEYS]


def config_to_yaml(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """Every key with its meaning (and its origin) as comments. Loads back to an equal Config."""
    values = _shown_values(config)
    lines: list[str] = []
    for section in SECTIONS:
        lines += ["", f"# {SECTION_MEANING[section]}", f"{section}:"]
        for spec in (spec for spec in KEYS.values() if spec.section == section):
            lines += [f"  # {line}" for line in textwrap.wrap(spec.meaning, _WIDTH, break_on_hyphens=False)]
            origin = f"  # {' '.join(origins[spec.dotted].split())}" if origins and spec.dotted in origins else ""
            lines.append(f"  {spec.leaf}: {yaml_value(values[spec.dotted])}{origin}")
    return "\n".join(lines[1:]) + "\n"


def config_json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a configuration file in our own names; every unknown key is refused."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    for section in SECTIONS:
        reference = schema["properties"][section]
        reference["description"] = SECTION_MEANING[section]
        properties = definitions[reference["$ref"].rsplit("/", 1)[1]]["properties"]
        for spec in (spec for spec in KEYS.values() if spec.section == section):
            properties[spec.leaf]["description"] = spec.meaning
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "Configuration of a halo-forge run.",
        **schema,
    }


def diff_configs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two configurations as dicts: `training.learning_rate: 2e-05 -> 0.0001`, one line a key."""
    lines = []
    before, after = flatten(old), flatten(new)
    for dotted in dict.fromkeys((*before, *after)):
        if dotted not in before or dotted not in after or before[dotted] != after[dotted]:
            values = [yaml_value(side[dotted]) if dotted in side else "(not set)" for side in (before, after)]
            lines.append(f"{dotted}: {values[0]} -> {values[1]}")
    return lines


def _shown_values(config: Config) -> dict[str, Any]:
    values = flat_values(config)
    for dotted in ENTRIES:
        if values[dotted] is not None:
            values[dotted] = [entry_settings(dotted, entry) for entry in values[dotted]]
    return values


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys; lists stay whole."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
