"""Is an answer right? Decided by a rule, not by likeness to a reference: what samples are chosen and counted by.

row_tests.py  the tests that a row carries     verifiers.py  text rules: regex, JSON Schema, numbers, a file of yours
code.py       code, compiled and tested in the sandbox       pass_at_k.py  the unbiased estimate over K samples
"""

from halo_forge.verify.pass_at_k import mean_pass_at_k, pass_at_k
from halo_forge.verify.row_tests import RowTests, row_tests
from halo_forge.verify.verifiers import Judged, Question, Verifier, make_verifiers

__all__ = [
    "Judged",
    "Question",
    "RowTests",
    "Verifier",
    "make_verifiers",
    "mean_pass_at_k",
    "pass_at_k",
    "row_tests",
]
