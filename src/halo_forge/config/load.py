"""One configuration from all its sources: default < preset < file < environment < --set < flags."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halo_forge.config.given import Findings, Layer
from halo_forge.config.keys import KEYS, default_values, flat_values
from halo_forge.config.learning_rates import default_learning_rate
from halo_forge.config.merging import implied, merged
from halo_forge.config.schema import Config
from halo_forge.config.settings import (
    environment_layer,
    file_layer,
    flags_layer,
    overrides_layer,
    preset_layer,
)
from halo_forge.config.snippets import clipped, readable
from halo_forge.config.strict_yaml import read_yaml
from halo_forge.config.validation import expand_home, unused, validated
from halo_forge.errors import ConfigError, ConfigProblem

MAX_PROBLEMS = 50
"""Problems that one message lists; the rest is counted."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """A configuration and how it came about.

    origins   every dotted key -> "default", "default for lora and ...", "preset NAME", "FILE:LINE",
              "environment HALO_FORGE__...", "--set" or the flag as typed
    notices   what was understood in another way than written, one sentence each
    sha256    of `config.to_dict()` as canonical JSON
    """

    config: Config
    origins: dict[str, str]
    notices: tuple[str, ...]
    sha256: str

    @classmethod
    def of(cls, config: Config) -> ResolvedConfig:
        """A configuration that was built in Python; what differs from the defaults is "set in code"."""
        defaults = default_values()
        origins = {
            dotted: "default" if value == defaults[dotted] else "set in code"
            for dotted, value in flat_values(config).items()
        }
        return cls(config, _with_learning_rate(origins, config), (), config_sha256(config))


def load_config(
    path: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    preset_name: str | None = None,
) -> ResolvedConfig:
    """Resolve the configuration.

    path          YAML or JSON file
    overrides     `section.key=value` texts of `--set`; the value is a YAML scalar or a flow list
    flags         dotted key -> (value, the flag as typed)
    preset        dotted key -> value: a domain's defaults; `preset_name` is shown as their origin
    environment   variables to look for HALO_FORGE__SECTION__KEY in; None means the process's

    Raises ConfigError with every problem found in all sources.
    """
    findings = Findings()
    layers = [
        preset_layer(preset or {}, preset_name),
        _file(path, findings) if path is not None else {},
        environment_layer(os.environ if environment is None else environment, findings),
        overrides_layer(overrides, findings),
        flags_layer(flags or {}, findings),
    ]
    settings = merged(layers, findings)
    follows = implied(settings, findings)
    values = default_values()
    values |= {dotted: value for dotted, (value, _) in follows.items()}
    values |= {dotted: setting.value for dotted, setting in settings.items()}
    config = validated(expand_home(values), settings, findings)
    if findings.problems:
        raise ConfigError(_told(findings.problems))
    notices = dict.fromkeys((*findings.notices, *unused(config, settings)))
    return ResolvedConfig(config, _origins(config, settings, follows), tuple(notices), config_sha256(config))


def config_sha256(config: Config) -> str:
    """Hash of every value, independent of key order; the same as `runs.sha256_json(config.to_dict())`."""
    text = json.dumps(config.to_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _file(path: str | Path, findings: Findings) -> Layer:
    """The file's layer. A file that is missing or no YAML at all leaves no values to check, so it is told alone."""
    path = Path(path)
    if not os.path.lexists(path):
        raise ConfigError([_missing_file(path)])
    document = read_yaml(path)
    if document.root is None:
        findings.notices.append(f"{path} is empty: every value is its default")
    return file_layer(document, findings)


def _missing_file(path: Path) -> ConfigProblem:
    suggestion = None
    try:
        names = sorted(
            entry.name for entry in os.scandir(path.parent) if entry.name.endswith((".yaml", ".yml", ".json"))
        )
    except OSError:
        suggestion = f"the directory {readable(clipped(str(path.parent)))} does not exist either"
    else:
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:5]
        if near:
            suggestion = " or ".join(str(path.parent / name) for name in near)
    return ConfigProblem(message="there is no such configuration file", where=str(path), suggestion=suggestion)


def _origins(config: Config, settings: Layer, follows: Mapping[str, tuple[Any, str]]) -> dict[str, str]:
    origins = {}
    for dotted in KEYS:
        if dotted in settings:
            origins[dotted] = settings[dotted].origin
        else:
            origins[dotted] = follows[dotted][1] if dotted in follows else "default"
    return _with_learning_rate(origins, config)


def _with_learning_rate(origins: dict[str, str], config: Config) -> dict[str, str]:
    if config.training.learning_rate is None:
        origins["training.learning_rate"] = default_learning_rate(config.training.method, config.model.name)[1]
    return origins


def _told(problems: list[ConfigProblem]) -> list[ConfigProblem]:
    """In the order of the file's lines, then the other sources."""

    def place(problem: ConfigProblem) -> tuple[int, ...]:
        numbers = problem.where.rsplit(":", 2)[1:]
        return (0, *map(int, numbers)) if problem.snippet and len(numbers) == 2 else (1,)

    problems = sorted(problems, key=place)
    if len(problems) <= MAX_PROBLEMS:
        return problems
    rest = len(problems) - MAX_PROBLEMS
    return [*problems[:MAX_PROBLEMS], ConfigProblem(message=f"and {rest} more", where=problems[MAX_PROBLEMS].where)]
