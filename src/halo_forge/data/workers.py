"""Batches to parts, in this process or in several: order, place and content of the parts do not depend on how many."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from halo_forge.data.files.raw_batches import rows_of
from halo_forge.data.files.rows import Row
from halo_forge.data.inputs import NumberedBatch
from halo_forge.data.parts import Part, open_part, part_of, write_part
from halo_forge.data.row_work import RowSource, RowWorker, WorkOrder
from halo_forge.errors import DataError
from halo_forge.runs import Notify

MIN_BYTES_FOR_PROCESSES = 8 * 2**20
"""Below this, starting processes (two seconds each, for the tokenizer) costs more than it saves."""
BATCHES_IN_FLIGHT = 3
T = TypeVar("T")


@dataclass(slots=True)
class PartMaker:
    """Turns batches into part files of one directory. Parts that are there already are taken as they are: the
    directory's name stands for everything that they depend on. A context: its processes end with it.

    num_workers  processes; 0 does all in this one; None: one per core where there are enough rows to pay for them
    """

    directory: Path
    order: WorkOrder
    sources: Sequence[RowSource]
    num_workers: int | None
    notify: Notify
    check: Callable[[], None]
    _pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> PartMaker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def parts(self, batches: Iterator[NumberedBatch]) -> Iterator[Part]:
        """The part of every batch, in order. Raises DataError where a worker process died."""
        num_rows = 0
        told = time.monotonic()
        num_workers, batches = self._enough(batches)
        for part in self._in_processes(batches, num_workers) if num_workers else self._here(batches):
            num_rows += part.num_rows
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                self.notify("data.progress", {"rows": num_rows, "stage": "prepare"})
            self.check()
            yield part

    def beside(self, work: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """Do other work in one of the processes; what is returned waits for it. Without processes it is done then."""
        if self._pool is None:
            return partial(work, *arguments)
        return partial(_result, self._pool.submit(work, *arguments))

    def _enough(self, batches: Iterator[NumberedBatch]) -> tuple[int, Iterator[NumberedBatch]]:
        """(how many processes, the batches again)"""
        if self.num_workers is not None:
            return self.num_workers, batches
        num_cores, num_bytes, first = os.cpu_count() or 1, 0, list[NumberedBatch]()
        if num_cores > 1:
            for batch in batches:
                first.append(batch)
                num_bytes += batch.num_bytes
                if num_bytes >= MIN_BYTES_FOR_PROCESSES:
                    return num_cores, chain(first, batches)
        return 0, chain(first, batches)

    def _path(self, number: int) -> Path:
        return self.directory / f"part-{number:06d}.arrow"

    def _here(self, batches: Iterator[NumberedBatch]) -> Iterator[Part]:
        worker: RowWorker | None = None
        for batch in batches:
            part = open_part(self._path(batch.number))
            if part is None:
                worker = worker or RowWorker(self.order)
                part = _make(worker, batch, self.sources, self._path(batch.number))
            yield part

    def _in_processes(self, batches: Iterator[NumberedBatch], num_workers: int) -> Iterator[Part]:
        waiting: deque[Part | Future[Part]] = deque()
        start = (self.order, self.sources, os.getpid())
        self._pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start, start)
        for batch in batches:
            there = open_part(self._path(batch.number))
            waiting.append(there or self._pool.submit(_work, batch, self._path(batch.number)))
            while len(waiting) >= BATCHES_IN_FLIGHT * num_workers:
                yield _part(waiting.popleft())
        while waiting:
            yield _part(waiting.popleft())


def _make(worker: RowWorker, batch: NumberedBatch, sources: Sequence[RowSource], path: Path) -> Part:
    read: list[tuple[int, Row]] = []
    notes: list[str] = []
    for source, raw in batch.pieces:
        rows, said = rows_of(raw)
        read += [(source, row) for row in rows]
        notes += said
    return write_part(path, part_of(worker.work(read, sources)), notes, Counter(source for source, _ in read))


def _part(made: Part | Future[Part]) -> Part:
    return made if isinstance(made, Part) else _result(made)


def _result(made: Future[T]) -> T:
    try:
        return made.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that prepared rows was ended from outside, most likely for want of memory",
            fix="the same command goes on where this one stopped; --set data.num_workers=0 takes less memory, and a "
            "script that starts this needs it, or its own `if __name__ == '__main__':`",
        ) from None


_worker: RowWorker
_sources: Sequence[RowSource]


def _start(order: WorkOrder, sources: Sequence[RowSource], parent: int) -> None:
    global _worker, _sources
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a signal means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}  # one thread each; there are others
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker, _sources = RowWorker(order), sources


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(batch: NumberedBatch, path: Path) -> Part:
    return _make(_worker, batch, _sources, path)
