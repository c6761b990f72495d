"""The table of domains: the seeds' defaults, keys that exist, and no pretending."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest

from halo_forge.config.schema import Config
from halo_forge.domains import DOMAINS, get_domain
from halo_forge.errors import ExitCode, UsageError

SEED_DEFAULTS = {
    "vlm": ("Qwen/Qwen2-VL-2B-Instruct", "llava", "models/vlm_sft", 2),
    "audio": ("openai/whisper-small", "librispeech_sft", "models/audio_sft", 3),
    "reasoning": ("Qwen/Qwen2.5-3B-Instruct", "metamath", "models/reasoning_sft", 2),
    "agentic": ("Qwen/Qwen2.5-7B-Instruct", "xlam_sft", "models/agentic_sft", 2),
}


def as_config(name: str) -> Config:
    sections: dict[str, dict[str, object]] = {}
    for key, value in get_domain(name).defaults.items():
        section, _, field = key.partition(".")
        sections.setdefault(section, {})[field] = value
    return Config.model_validate(sections)


@pytest.mark.parametrize("name", SEED_DEFAULTS)
def test_domains_have_the_defaults_of_the_seeds(name: str) -> None:
    config = as_config(name)
    found = (config.model.name, config.data.dataset, config.output.dir, config.training.num_train_epochs)
    assert found == SEED_DEFAULTS[name]


def test_text_is_the_schema_itself() -> None:
    assert as_config("text") == Config()


def test_the_table_is_whole() -> None:
    assert list(DOMAINS) == ["text", "reasoning", "agentic", "vlm", "audio"]
    assert all(domain.name == name and domain.datasets for name, domain in DOMAINS.items())
    assert {name for name, domain in DOMAINS.items() if not domain.available} == {"vlm", "audio"}
    copy.deepcopy(DOMAINS)


@pytest.mark.parametrize(("name", "word"), [("vlm", "images"), ("audio", "audio")])
def test_what_comes_later_says_so(name: str, word: str) -> None:
    note = get_domain(name).note
    assert note is not None
    assert "later release" in note
    assert word in note


def test_an_unknown_domain_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no domain `visual`") as caught:
        get_domain("visual")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "reasoning" in str(caught.value.expected)
    with pytest.raises(UsageError) as caught:
        get_domain("reasonning")
    assert caught.value.fix == "did you mean reasoning?"


def test_the_light_modules_import_no_torch() -> None:
    modules = "halo_forge.domains, halo_forge.doctor, halo_forge.models, halo_forge.models.resolve"
    program = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
