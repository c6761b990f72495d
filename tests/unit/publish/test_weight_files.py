"""Reading safetensors for what must not be published."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from halo_forge.errors import DataError
from halo_forge.publish.weights import CHUNK_BYTES, check_weights, weights_sha256
from halo_forge.runs import sha256_tree


def write_raw(path: Path, dtype: str, data: bytes, num: int) -> None:
    header = json.dumps({"t": {"dtype": dtype, "shape": [num], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_counts_of_a_sharded_model(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 3), dtype=np.float32), "i": np.zeros(4, dtype=np.int64)}, tmp_path / "m-1.safetensors")
    save_file({"b": np.ones(5, dtype=np.float16), "s": np.array(1, dtype=np.float32)}, tmp_path / "m-2.safetensors")
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    facts = check_weights(tmp_path)
    assert (facts.num_tensors, facts.num_parameters) == (4, 6 + 4 + 5 + 1)
    assert facts.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert weights_sha256(tmp_path) == sha256_tree(tmp_path, names=["m-1.safetensors", "m-2.safetensors"])
    (tmp_path / "m-2.safetensors").unlink()
    with pytest.raises(DataError, match=r"not here: m-2\.safetensors"):
        check_weights(tmp_path)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_found_in_every_float_type_and_extreme_numbers_are_not_nan(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0, 1.0], dtype=torch.float64).to(dtype)
    save_torch_file({"t": values}, tmp_path / "a.safetensors")
    assert check_weights(tmp_path).num_parameters == 6
    values = torch.cat([values, torch.tensor([float("nan")]).to(dtype)])
    save_torch_file({"t": values}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="tensor t holds NaN"):
        check_weights(tmp_path)


def test_nan_in_the_last_number_of_a_tensor_larger_than_one_chunk(tmp_path: Path) -> None:
    values = np.ones(CHUNK_BYTES // 4 + 3, dtype=np.float32)
    save_file({"t": values}, tmp_path / "a.safetensors")
    check_weights(tmp_path)
    values[-1] = np.nan
    save_file({"t": values}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="NaN"):
        check_weights(tmp_path)


def test_data_that_starts_at_an_odd_byte_is_read_right(tmp_path: Path) -> None:
    data = np.array([1.0, np.inf], dtype="<f4").tobytes()
    header = b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (len(header) % 2 == 0)
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert (8 + len(header)) % 2 == 1
    with pytest.raises(DataError, match="infinity"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"not a header at all", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]"],
)
def test_files_that_do_not_parse_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="do not load") as caught:
        check_weights(tmp_path)
    assert caught.value.where == str(tmp_path / "a.safetensors")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    save_file({"t": np.ones(100, dtype=np.float32)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(DataError, match="do not load"):
        check_weights(tmp_path)


def test_an_empty_adapter_is_refused(tmp_path: Path) -> None:
    """What some sharded savers write: a valid file of 40 bytes without a tensor."""
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="hold no numbers"):
        check_weights(tmp_path)
    with pytest.raises(DataError, match="no weights here"):
        check_weights(tmp_path / "nowhere")


def test_integer_bits_that_look_like_nan_are_fine(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.safetensors", "U8", b"\xff" * 16, 16)
    assert check_weights(tmp_path).num_parameters == 16
