"""The table of docs/malformed-input.md, written from the cases and from what the data room really answers.

python tests/malformed/malformed_table.py        writes docs/malformed-input.md anew
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from halo_forge.data import check_file
from halo_forge.data.reasons import REASONS
from halo_forge.errors import DataError
from malformed.malformed_files import CASES as FILE_CASES
from malformed.malformed_files import SHOWN
from malformed.malformed_rows import CASES as ROW_CASES
from malformed.malformed_rows import Case

CASES = (*ROW_CASES, *FILE_CASES)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "malformed-input.md"
HEAD = """# Malformed input, case by case

What halo-forge does with a hundred kinds of bad files and bad rows. Every line is a test (`tests/malformed`), and this
page is written by `python tests/malformed/malformed_table.py` from what the tests see. A dropped row never touches
another; a row that is mended or flagged is counted; each case is answered within 5 seconds and 1 GB of memory on an
idle machine (the slowest: 3.3 s for the 10 000 shards of M79).
`halo-forge data check FILE` exits with 3 when rows are damaged or the file cannot be read.

The second column is what TRL 1.16 with datasets 5.2 did with the same input where it was measured.

| | what is wrong | TRL and datasets | halo-forge |
|---|---|---|---|
"""


def answer_of(case: Case, directory: Path) -> str:
    """What the data room says to a case, in the words of its report."""
    name = case.build(directory)
    try:
        report = check_file(str(directory / name))
    except DataError as error:
        return f"refused: {_plain(error.what, directory)}"
    told = [row for row in report.rows if row["line"] in case.lines and row["code"]]
    if not told:
        return f"all {report.kept} row{'s' if report.kept != 1 else ''} kept"
    row = told[0]
    code = next(code for code in row["code"].split(",") if code == case.lines[row["line"]][1])
    reason = row["reason"] if row["action"] == "dropped" else REASONS[code].meaning
    return f"`{code}` ({row['action']}): {_plain(reason, directory)}"


def _plain(text: str, directory: Path) -> str:
    text = text.splitlines()[0].replace(str(directory), "").replace("|", "\\|")
    return re.sub(r"[^\x20-\x7e]", "?", text)[:160]


def line_of(id: str, what: str, peers: str, answer: str) -> str:
    return f"| {id} | {what} | {peers} | {answer} |\n"


def document() -> str:
    lines: dict[str, str] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / "rows"
            place.mkdir()
            lines[case.id] = line_of(case.id, case.what, case.peers, answer_of(case, place))
    for shown in SHOWN:
        lines[shown.id] = line_of(shown.id, shown.what, shown.peers, shown.answer)
    ordered = sorted(lines, key=lambda id: (int(re.findall(r"\d+", id)[0]), id))
    return HEAD + "".join(lines[id] for id in ordered)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
