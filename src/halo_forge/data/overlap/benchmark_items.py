"""The items of a benchmark, as its evaluation reads them: what training rows must not repeat.

Known benchmarks are found, in this order: in the tree given, in $HALO_FORGE_BENCHMARKS, in ./benchmarks (folders named
as on the Hub: openai/gsm8k/main/test.parquet), in the caches of huggingface_hub and datasets, on the Hub. Anything
else is a file or directory of rows in any format that training data may have.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halo_forge.chat.records import Conversation, Message
from halo_forge.config.schema import DataSection
from halo_forge.data.conversion.formats import DETECTED_ROWS, convert, detect
from halo_forge.data.files.rows import shown_path
from halo_forge.data.files.sources import expand_paths, read_rows
from halo_forge.errors import DataError, RowError, UsageError
from halo_forge.media.store import media_parts, settle_media
from halo_forge.metrics import TREE_VARIABLE
from halo_forge.runs import Notify, sha256_json, silent

HOLDOUT = "holdout"
"""The name that a holdout file goes by among the benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkItem:
    """One question as written, unnormalised. `others` are further texts shown with it (the choices)."""

    id: str
    prompt: str
    answer: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """`sha256` is over the items, wherever they were read from."""

    name: str
    sha256: str
    items: tuple[BenchmarkItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBenchmark:
    """`config` None: every folder below the data set is one (MMLU's subjects). `item` raises KeyError or IndexError
    for rows that lack its columns. `file_names` are file names that do not start with the split's."""

    hub_id: str
    config: str | None
    split: str
    item: Callable[[Mapping[str, Any]], BenchmarkItem]
    file_names: tuple[str, ...] = ()


def _gsm8k(row: Mapping[str, Any]) -> BenchmarkItem:
    return BenchmarkItem(id="", prompt=row["question"], answer=row["answer"])


def _mmlu(row: Mapping[str, Any]) -> BenchmarkItem:
    choices = tuple(row["choices"])
    return BenchmarkItem(id="", prompt=row["question"], answer=choices[int(row["answer"])], others=choices)


def _truthfulqa(row: Mapping[str, Any]) -> BenchmarkItem:
    choices = tuple(row["mc1_targets"]["choices"])
    more = tuple(choice for choice in row["mc2_targets"]["choices"] if choice not in choices)
    return BenchmarkItem(id="", prompt=row["question"], answer=choices[0], others=choices + more)


def _hellaswag(row: Mapping[str, Any]) -> BenchmarkItem:
    endings = tuple(row["endings"])
    answer = endings[int(row["label"])] if str(row["label"]) else ""
    return BenchmarkItem(id="", prompt=row["ctx"], answer=answer, others=endings)


def _humaneval(row: Mapping[str, Any]) -> BenchmarkItem:
    return BenchmarkItem(id=row["task_id"], prompt=row["prompt"], answer=row["canonical_solution"])


def _ifeval(row: Mapping[str, Any]) -> BenchmarkItem:
    return BenchmarkItem(id=str(row["key"]), prompt=row["prompt"], answer="")


KNOWN: Mapping[str, KnownBenchmark] = {
    "gsm8k": KnownBenchmark(hub_id="openai/gsm8k", config="main", split="test", item=_gsm8k),
    "mmlu": KnownBenchmark(hub_id="cais/mmlu", config=None, split="test", item=_mmlu),
    "truthfulqa": KnownBenchmark(
        hub_id="truthfulqa/truthful_qa", config="multiple_choice", split="validation", item=_truthfulqa
    ),
    "hellaswag": KnownBenchmark(hub_id="Rowan/hellaswag", config="default", split="validation", item=_hellaswag),
    "humaneval": KnownBenchmark(
        hub_id="openai/openai_humaneval", config="openai_humaneval", split="test", item=_humaneval
    ),
    "ifeval": KnownBenchmark(
        hub_id="google/IFEval", config="default", split="train", item=_ifeval, file_names=("ifeval_input_data.jsonl",)
    ),
}


def benchmarks_of(data: DataSection) -> list[Benchmark]:
    """What training rows must not repeat: the benchmarks of data.decontaminate and the holdout file. Raises DataError
    for a benchmark that is not on this machine."""
    found = list(load_benchmarks(data.decontaminate))
    if data.holdout_file:
        found.append(replace(load_benchmark(data.holdout_file), name=HOLDOUT))
    return found


def load_benchmarks(names: Sequence[str], tree: Path | None = None, notify: Notify = silent) -> tuple[Benchmark, ...]:
    """The benchmarks named; a directory that is laid out like a tree of known ones stands for all that it holds."""
    benchmarks: list[Benchmark] = []
    for name in names:
        held = _known_in(Path(name)) if known_name(name) is None else []
        if held:
            benchmarks += [load_benchmark(known, Path(name), notify) for known in held]
        else:
            benchmarks.append(load_benchmark(name, tree, notify))
    return tuple(benchmarks)


def load_benchmark(name_or_path: str, tree: Path | None = None, notify: Notify = silent) -> Benchmark:
    """A known benchmark by its name, by lm-eval's name of one of its tasks or by its Hub id, or a file or directory of
    rows.

    tree  where to look first for known benchmarks
    Raises UsageError for a name that is neither, DataError where the items are not on this machine or not readable.
    """
    known = known_name(name_or_path)
    if known is not None:
        return _load_known(known, tree, notify)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(name_or_path.casefold(), KNOWN, n=1)
        raise UsageError(
            f"{name_or_path!r} is neither a known benchmark nor a file or directory",
            expected=f"{', '.join(KNOWN)}, or a path",
            fix=f"did you mean {near[0]}?" if near else None,
        )
    return _load_rows(path, notify)


def known_name(name: str) -> str | None:
    """`gsm8k` for gsm8k, GSM8K, gsm8k_cot, openai/gsm8k; None for what is not a known benchmark."""
    name = name.casefold()
    for known, spec in KNOWN.items():
        if name == known or name.startswith(f"{known}_") or name == spec.hub_id.casefold():
            return known
    return None


def benchmark_of(name: str, conversations: Iterable[tuple[str, Conversation]]) -> Benchmark:
    """(id, conversation) pairs, for instance the held-out rows, as a benchmark: user and tool text is the prompt, the
    assistant's text the answer. System text is left out, because training rows share it rightfully."""
    items = []
    for id, conversation in conversations:
        turns = [turn for turn in conversation.messages if turn.role != "system"]
        answers = [turn.text for turn in turns if turn.role in ("assistant", "document")]
        prompts = [_asked(turn) for turn in turns if turn.role not in ("assistant", "document")]
        items.append(BenchmarkItem(id=id, prompt="\n".join(prompts), answer="\n".join(answers)))
    return benchmark_from(name, items)


def _asked(turn: Message) -> str:
    """A turn's text, an image or sound in it by its content, as training rows are compared (plain_text.py): the same
    question about another picture is another question."""
    return " ".join([*(f"{part.kind}:{part.sha256}" for part in media_parts((turn,))), turn.text]).strip()


def benchmark_from(name: str, items: Sequence[BenchmarkItem]) -> Benchmark:
    digest = sha256_json([[item.id, item.prompt, item.answer, *item.others] for item in items])
    return Benchmark(name=name, sha256=digest, items=tuple(items))


# ------------------------------------------------------------------------------------------------ rows of the user's


def _load_rows(path: Path, notify: Notify) -> Benchmark:
    conversations: list[tuple[str, Conversation]] = []
    for file in expand_paths([str(path)]):
        name = shown_path(file)
        rows = list(read_rows(file, lambda text: notify("note", {"text": text})))
        values = [row.value for row in rows[:DETECTED_ROWS] if row.value is not None]
        verdict = detect(name, values)
        num_unreadable = 0
        for row in rows:
            try:
                if row.problem is not None:
                    raise row.problem
                conversation = convert(row, verdict.format, media=True).conversation
                conversation = settle_media(conversation, Path(row.path).parent)
            except RowError:
                num_unreadable += 1
                continue
            where = file.relative_to(path).as_posix() if path.is_dir() else file.name
            conversations.append((f"{where}:{row.line}", conversation))
        if num_unreadable:
            notify("note", {"text": f"{name}: {num_unreadable} of {len(rows)} rows hold no benchmark item"})
    if not conversations:
        raise DataError("this benchmark holds no item", where=shown_path(path), fix="halo-forge data check FILE")
    return benchmark_of(path.name, conversations)


# ------------------------------------------------------------------------------------------------ known benchmarks


def _load_known(name: str, tree: Path | None, notify: Notify) -> Benchmark:
    spec = KNOWN[name]
    files = next((files for place in _places(spec, tree) if (files := _split_files(place, spec))), None)
    files = files or _downloaded(name, spec, notify)
    items: list[BenchmarkItem] = []
    for file in files:
        try:
            rows = _table_rows(file)
            items += [_numbered(spec, file, number, row) for number, row in enumerate(rows)]
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            raise DataError(
                f"this is not {name} as its evaluation reads it: {type(error).__name__}: {error}",
                where=shown_path(file),
                fix=f"hf download {spec.hub_id} --repo-type dataset",
            ) from None
    return benchmark_from(name, items)


def _numbered(spec: KnownBenchmark, file: Path, number: int, row: Mapping[str, Any]) -> BenchmarkItem:
    item = spec.item(row)
    subject = f"{row.get('subject') or file.parent.name}/" if spec.config is None else ""
    return BenchmarkItem(id=item.id or f"{subject}{number}", prompt=item.prompt, answer=item.answer, others=item.others)


def _places(spec: KnownBenchmark, tree: Path | None) -> Iterator[Path]:
    """Directories that may hold the data set, nearest first."""
    named = os.environ.get(TREE_VARIABLE)
    for root in (tree, Path(named).expanduser() if named else None, Path("benchmarks")):
        if root is not None:
            yield root / spec.hub_id
    from huggingface_hub import constants

    owner, _, name = spec.hub_id.partition("/")
    repository = Path(constants.HF_HUB_CACHE) / f"datasets--{owner}--{name}"
    main = repository / "refs" / "main"
    if main.is_file():
        yield repository / "snapshots" / main.read_text().strip()
    made = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    yield made / f"{owner}___{name}"


def _known_in(tree: Path) -> list[str]:
    return [name for name, spec in KNOWN.items() if (tree / spec.hub_id).is_dir()]


def _split_files(directory: Path, spec: KnownBenchmark) -> list[Path]:
    """The files of the split, in the layouts of the Hub, of a plain tree and of datasets' own cache; [] if absent."""
    if not directory.is_dir():
        return []
    if spec.config is not None:
        folders = [directory / spec.config, directory / "data", directory]
    else:
        folders = sorted(
            path for path in directory.iterdir() if path.is_dir() and path.name not in ("all", "auxiliary_train")
        )
        return [file for folder in folders for file in _files_of_split(folder, spec)] or _files_of_split(
            directory / "all", spec
        )
    return next((files for folder in folders if (files := _files_of_split(folder, spec))), [])


def _files_of_split(folder: Path, spec: KnownBenchmark) -> list[Path]:
    names = (f"{spec.split}.parquet", f"{spec.split}-*.parquet", f"{spec.split}.jsonl", *spec.file_names)
    for pattern in (*names, f"*/*/*-{spec.split}.arrow", f"*/*/*-{spec.split}-*.arrow"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def _table_rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        with open(file, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    with pa.memory_map(str(file)) as source:
        cached: list[dict[str, Any]] = pa.ipc.open_stream(source).read_all().to_pylist()
    return cached


def _downloaded(name: str, spec: KnownBenchmark, notify: Notify) -> list[Path]:
    """The files, fetched from the Hub. Raises DataError within a second where it is switched off or out of reach."""
    from halo_forge.models.hub import is_offline, unreachable_reason

    reason = "the Hub is switched off (HF_HUB_OFFLINE=1)" if is_offline() else unreachable_reason()
    if reason is None:
        from huggingface_hub import snapshot_download

        notify("note", {"text": f"downloading {spec.hub_id}"})
        patterns = [f"*{spec.split}*.parquet", *spec.file_names]
        try:
            directory = Path(snapshot_download(spec.hub_id, repo_type="dataset", allow_patterns=patterns))
        except Exception as error:  # of the Hub's client, the HTTP library below it, or the disk: all end the same way
            reason = f"the Hub did not give it: {type(error).__name__}: {error}".splitlines()[0]
        else:
            files = _split_files(directory, spec)
            if files:
                return files
            reason = f"the Hub's {spec.hub_id} has no {spec.split} files where they are looked for"
    raise DataError(
        f"the benchmark {name} ({spec.hub_id}) is not on this machine, and {reason}",
        where=f"${TREE_VARIABLE}, ./benchmarks, the Hub's cache",
        expected=f"{spec.hub_id}/{spec.config or 'SUBJECT'}/{spec.split}.parquet below one of them",
        fix=f"hf download {spec.hub_id} --repo-type dataset   (on a machine with a network)",
    )
