"""What every killed run is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("faults.fault_runs")

from faults.fault_runs import CADENCE, METHODS, Job, train_to_the_end  # noqa: E402


@pytest.fixture(scope="session")
def unkilled(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Method -> a run that nobody killed."""
    root = tmp_path_factory.mktemp("unkilled")
    for name, training in METHODS.items():
        train_to_the_end(Job(tiny_model_dir, root / name / "run", training | CADENCE))
    return {name: root / name / "run" for name in METHODS}
