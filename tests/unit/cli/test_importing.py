"""The imports that bring torch are left out of every search for garbage; the searches themselves go on."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

from halo_forge.cli.running import importing

SCRIPT = """
import gc, json
from halo_forge.cli.running import importing
counts = []
for _ in range(2):
    with importing():
        inside = gc.isenabled()
        import torch
    counts.append((gc.get_freeze_count(), inside, gc.isenabled()))
print(json.dumps(counts))
"""


def test_what_torch_brings_is_kept_out_once() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    (first, *switches), second = json.loads(said)
    assert first > 50_000
    assert switches == [False, True]
    assert second == [first, False, True], "objects of later imports may become garbage"


def test_it_leaves_a_switched_off_collector_alone() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
