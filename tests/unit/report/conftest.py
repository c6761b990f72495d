"""Gives this folder's tests the builders of small, real run directories."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load(file_name: str) -> ModuleType:
    name = f"halo_forge_test_{file_name.removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file_name))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    return load("run_builder.py")


@pytest.fixture(scope="session")
def data_builder() -> ModuleType:
    return load("data_builder.py")
