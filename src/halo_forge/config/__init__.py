"""Configuration: schema, strict loading, other tools' names, and where each value came from.

load.py         load_config: all sources, one Config, every problem at once
strict_yaml.py  text -> values with their places          snippets.py   a line with a caret, without secrets
settings.py     what was typed -> our dotted keys         aliases.py    the one table of other tools' names
merging.py      precedence and what follows from it       alias_*.py    how the rows of that table are read
validation.py   the schema and contradictions, in words   keys.py       the schema as a flat table
sources.py      the entries of data.sources               explain.py    a configuration shown
yaml_text.py    values as YAML                             given.py      one key as typed, and what it means
"""

from __future__ import annotations

from halo_forge.config.explain import config_json_schema, config_to_yaml, diff_configs, explain_config, flatten
from halo_forge.config.load import ResolvedConfig, config_sha256, load_config
from halo_forge.config.schema import Config

__all__ = [
    "Config",
    "ResolvedConfig",
    "config_json_schema",
    "config_sha256",
    "config_to_yaml",
    "diff_configs",
    "explain_config",
    "flatten",
    "load_config",
]
