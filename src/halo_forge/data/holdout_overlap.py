"""Do training rows share passages with rows held out of the same files?

Exact copies and near-duplicates are gone before the split. What may be left are shared sentences: two questions that
came from one template, a story told twice. The same search that finds benchmark items in rows (overlap/contamination)
finds them; they are told, with examples, and nothing is left out for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from halo_forge.artifacts import ContaminationReport
from halo_forge.data.ledger import redacted
from halo_forge.data.overlap.benchmark_items import HOLDOUT, BenchmarkItem, benchmark_from
from halo_forge.data.overlap.contamination import BenchmarkIndex, Hit, contamination_reports
from halo_forge.data.overlap.plain_text import without_system
from halo_forge.data.parts import Part, rows_with
from halo_forge.data.split import SPLITS

MAX_ITEMS, MAX_ROWS = 2_000, 100_000
"""Held-out and training rows that are compared, evenly taken where there are more: what is told is a share."""


def overlap_with_holdout(
    parts: Sequence[Part],
    split_of: np.ndarray,
    sources: Sequence[str],
    max_items: int = MAX_ITEMS,
    max_rows: int = MAX_ROWS,
) -> ContaminationReport | None:
    """What the training rows have in common with the held-out ones; None where either is missing.

    split_of  int8 [num_rows]  index into SPLITS, or -1 for a row that is left out
    sources   label of each source
    """
    held = _evenly(np.flatnonzero(split_of == SPLITS.index("holdout")), max_items)
    trained = _evenly(np.flatnonzero(split_of == SPLITS.index("train")), max_rows)
    if not len(held) or not len(trained):
        return None
    items = [
        BenchmarkItem(id=f"{sources[source]}:{line}", prompt=without_system(prompt or ""), answer=answer or "")
        for _, (source, line, prompt, answer) in rows_with(parts, ("source", "line", "prompt", "answer"), held.tolist())
    ]
    holdout = benchmark_from(HOLDOUT, items)
    index = BenchmarkIndex.build([holdout])
    hits: list[tuple[str, int, Hit]] = []
    start = 0
    for part in parts:
        first, last = np.searchsorted(trained, (start, start + part.num_rows))
        batch = part.read(("source", "line", "prompt", "answer")).take(pa.array(trained[first:last] - start))
        start += part.num_rows
        found = index.check(batch["prompt"].to_pylist(), batch["answer"].to_pylist())
        for at, hit in enumerate(found):
            if hit is not None:
                hits.append((sources[batch["source"][at].as_py()], batch["line"][at].as_py(), hit))
    return contamination_reports([holdout], hits, redacted)[0]


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def overlap_note(report: ContaminationReport | None, num_trained: int, num_held: int) -> str | None:
    """What to tell, with the two strongest examples; None where nothing of weight is shared."""
    if report is None or not report.near + report.ngram_13 + report.exact:
        return None
    of = f"{report.items} held-out rows" + (f" (of {num_held})" if report.items < num_held else "")
    looked_at = (
        f"{MAX_ROWS} training rows (of {num_trained})" if num_trained > MAX_ROWS else f"{num_trained} training rows"
    )
    nearly = f"{report.exact + report.near} nearly all their words, " if report.exact + report.near else ""
    shown = "; ".join(f'{hit.file}:{hit.line} with {hit.item}: "{hit.excerpt}"' for hit in report.examples[:2])
    return (
        f"holdout: of {looked_at}, {nearly}{report.ngram_13} share 13 words or more with one of {of}, "
        f"so the holdout may flatter the model; nothing was left out for it ({shown})"
    )
