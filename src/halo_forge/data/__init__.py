"""Rows in, frozen splits out: sources, formats, ledger, split. Importable without torch."""

from __future__ import annotations

from halo_forge.data.check import CheckReport, check, check_file, conversation_of_row
from halo_forge.data.files.datasets_table import DATASETS, DatasetEntry
from halo_forge.data.prepare import load_prepared, prepare

__all__ = [
    "DATASETS",
    "CheckReport",
    "DatasetEntry",
    "check",
    "check_file",
    "conversation_of_row",
    "load_prepared",
    "prepare",
]
