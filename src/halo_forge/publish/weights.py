"""What may be published as weights: safetensors that parse, are not empty and hold no NaN or infinity. numpy only."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from halo_forge.errors import DataError
from halo_forge.runs import sha256_tree

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill"})
CHUNK_BYTES = 1 << 24
# dtype name in a safetensors header -> (numpy view, bits that are all set in NaN and infinity, mask of those bits).
# The bit test needs no bfloat16 or float8 type in numpy.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),  # has no infinity; this one pattern is its NaN
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFacts:
    num_tensors: int
    num_parameters: int
    num_bytes: int


def weight_names(directory: Path) -> list[str]:
    """The *.safetensors files directly in `directory`; a DataError when there are none."""
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise DataError(
            "no weights here",
            where=str(directory),
            expected="adapter_model.safetensors or model.safetensors",
            fix="train the run to its end: `halo-forge run CONFIG`",
        )
    return names


def weights_sha256(directory: Path) -> str:
    """The hash that the records call weights_sha256: over name and content of the root's safetensors files."""
    return sha256_tree(directory, names=weight_names(directory))


def require_no_pickle(directory: Path) -> None:
    """A DataError for the first file that loading could execute."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and _looks_like_pickle(path):
            raise DataError(
                "a pickle can run code when it is loaded, so it is not published",
                where=str(path),
                expected="weights as safetensors, everything else as text or JSON",
                fix=f"remove {path.name} from the model directory, or save the weights with save_pretrained",
            )


def _looks_like_pickle(path: Path) -> bool:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    if path.suffix == ".safetensors":  # begins with a binary length, which may look like anything
        return False
    with open(path, "rb") as file:
        start = file.read(4)
    is_pickle = len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 5
    return is_pickle or start == b"PK\x03\x04"  # torch.save writes a zip archive around a pickle


def check_weights(directory: Path) -> WeightFacts:
    """Read every tensor once. Raises DataError for a file that does not parse, an index that names a file that is
    not there, an empty model, or a tensor with NaN or infinity (named)."""
    num_tensors = num_parameters = num_bytes = 0
    names = weight_names(directory)
    _require_shards(directory, names)
    for name in names:
        path = directory / name
        num_bytes += path.stat().st_size
        for tensor, dtype, shape, chunks in _tensors(path):
            num_tensors += 1
            num_parameters += int(np.prod(shape, dtype=np.int64))
            if dtype in _EXPONENTS and any(_has_nonfinite(chunk, dtype) for chunk in chunks):
                raise DataError(
                    f"tensor {tensor} holds NaN or infinity",
                    where=str(path),
                    expected="finite numbers",
                    fix="train again with a lower learning rate; metrics.jsonl shows where the loss left the ground",
                )
    if num_parameters == 0:
        raise DataError("the weights hold no numbers", where=str(directory), fix="train the run again")
    return WeightFacts(num_tensors=num_tensors, num_parameters=num_parameters, num_bytes=num_bytes)


def _require_shards(directory: Path, names: list[str]) -> None:
    for index in sorted(directory.glob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DataError("this is not an index of weight files", where=str(index)) from None
        missing = sorted(str(shard) for shard in shards - set(names))
        if missing:
            raise DataError(f"the index names weights that are not here: {', '.join(missing)}", where=str(index))


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int], Iterator[np.ndarray]]]:
    try:
        with safe_open(str(path), framework="numpy") as file:  # validates the header: offsets, overlaps, sizes
            file.keys()
    except (SafetensorError, OSError) as error:
        raise DataError(f"these weights do not load: {error}", where=str(path), fix="train the run again") from None
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        offset = 8 + header_bytes + begin
        yield name, entry["dtype"], entry["shape"], _chunks(path, offset, end - begin)


def _chunks(path: Path, offset: int, num_bytes: int) -> Iterator[np.ndarray]:
    with open(path, "rb") as file:
        file.seek(offset)
        while num_bytes > 0:
            data = file.read(min(CHUNK_BYTES, num_bytes))
            if not data:
                raise DataError("the weights file became shorter while it was read", where=str(path))
            num_bytes -= len(data)
            yield np.frombuffer(data, dtype=np.uint8)


def _has_nonfinite(data: np.ndarray, dtype: str) -> bool:
    view, exponent = _EXPONENTS[dtype]
    mask = np.array(exponent, dtype=view)
    return bool(((data.view(view) & mask) == mask).any())
