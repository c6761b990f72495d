"""The table of domains: the seeds' defaults, keys that exist, and no pretending."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest

from halo_forge import domains
from halo_forge.config.schema import Config
from halo_forge.domains import Domain, all_domains, domain_that_reads, get_domain
from halo_forge.errors import ExitCode, UsageError

DOMAINS = all_domains()
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
    assert {name: domain.reads for name, domain in DOMAINS.items() if domain.opens} == {
        "vlm": "image",
        "audio": "audio",
    }
    copy.deepcopy(DOMAINS)


def test_a_model_is_opened_by_the_domain_of_its_type() -> None:
    found = {name: getattr(domain_that_reads(name), "name", None) for name in ("llama", "idefics3", "whisper")}
    assert found == {"llama": None, "idefics3": "vlm", "whisper": "audio"}


class Installed:
    """What importlib.metadata tells of another package's entry point."""

    value = "their_package:SMELL"

    def __init__(self, name: str, loaded: object) -> None:
        self.name, self.loaded = name, loaded

    def load(self) -> object:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Installed]]:
    entries: list[Installed] = []
    monkeypatch.setattr(domains, "entry_points", lambda group: entries if group == "halo_forge.domains" else [])
    domains.all_domains.cache_clear()
    yield entries
    domains.all_domains.cache_clear()


def test_another_package_adds_a_domain(installed: list[Installed]) -> None:
    smell = Domain(name="smell", title="Smells", model_types=("nose",), opens="their_package:open_nose")
    installed.append(Installed("smell", smell))
    assert get_domain("smell") is smell
    assert domain_that_reads("nose") is smell


@pytest.mark.parametrize(
    ("loaded", "words"),
    [
        (ImportError("no module their_package"), "cannot be loaded: ImportError: no module their_package"),
        ("smell", "this is no Domain but str"),
        (Domain(name="taste", title="Tastes"), "the domain `taste` stands under the name `smell`"),
        (Domain(name="smell", title="Smells", model_types=("whisper",)), "another domain has this already: whisper"),
    ],
)
def test_a_domain_that_cannot_be_is_refused_by_name(installed: list[Installed], loaded: object, words: str) -> None:
    installed.append(Installed("smell", loaded))
    with pytest.raises(UsageError, match=words) as caught:
        get_domain("text")
    assert "smell = their_package:SMELL" in str(caught.value.where)


def test_a_taken_name_is_refused(installed: list[Installed]) -> None:
    installed.append(Installed("vlm", Domain(name="vlm", title="Also")))
    with pytest.raises(UsageError, match="another domain has this already: vlm"):
        get_domain("text")


def test_names_are_known_without_loading_anything(installed: list[Installed]) -> None:
    """Help must come also where a package's domain is broken."""
    installed.append(Installed("smell", ImportError("no module their_package")))
    assert domains.domain_names() == ["text", "reasoning", "agentic", "vlm", "audio", "smell"]


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
