"""The tests see the bugs they are for: each is planted in a copy of the source, and the named test turns red."""

from __future__ import annotations

import pytest

from faults.plant import MUTANTS, ROOT, Mutant, is_caught


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_place_is_still_there(mutant: Mutant) -> None:
    assert (ROOT / "src" / "halo_forge" / mutant.file).read_text().count(mutant.old) == 1
    assert (ROOT / mutant.test.split("::")[0]).is_file()


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant: Mutant) -> None:
    assert is_caught(mutant)
