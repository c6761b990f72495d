"""What every domain keeps, ours and the example of a package's own: masks, media that count, exact resume, a plan, a
verdict. A new domain without a kit (tests/domain_kits.py) is red here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domain_kits import KITS, install_own_domain
from halo_forge.chat import Example, read_examples
from halo_forge.config import Config, load_config
from halo_forge.data import load_prepared
from halo_forge.domains import all_domains, get_domain
from halo_forge.domains.documents import documents
from halo_forge.domains.media import Media, open_media
from halo_forge.errors import DataError, Interrupted
from halo_forge.evaluate.released import compare_versions, read_scores
from halo_forge.evaluate.statistics import Resampling
from halo_forge.media.store import keep_bytes, read_medium
from halo_forge.models.compute import Compute
from halo_forge.models.load import load_model
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.pipeline import RunResult, plan, publish_run, run
from halo_forge.runs import RunDirectory
from halo_forge.train.methods import load_training_model
from halo_forge.train.planning.forecast import shape_to_train
from halo_forge.train.planning.remedies import with_settings
from training_runs import CPU, Prepared, final_weights, losses, settings, train_now

pytest.importorskip("PIL")
pytest.importorskip("soundfile")
WITH_MEDIA = ("vlm", "audio", "audio, a language model", "moonshine")


@dataclass(frozen=True)
class Finished:
    """A whole run of a domain's tiny model."""

    config: Config
    result: RunResult
    rows: Path
    model: Path

    @property
    def examples(self) -> list[Example]:
        assert self.result.prepared is not None
        store = read_examples(self.result.directory / self.result.prepared.splits["train"].examples)
        return [store[index] for index in range(len(store))]

    def media(self) -> Media:
        media = open_media(self.config, tokenizer_of(self.config.model))
        assert media is not None
        return media


@pytest.fixture(scope="module", autouse=True)
def own_domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        install_own_domain(patch, tmp_path_factory.mktemp("site"))
        yield
    all_domains.cache_clear()
    torch.set_num_threads(threads)


def options(name: str, **more: Any) -> dict[str, Any]:
    return {
        "num_train_epochs": 1, "gradient_accumulation_steps": 1, "learning_rate": 5e-3,
        "output.save_steps": 2, "data.holdout_split": 0.2,
        "evaluation.max_new_tokens": 8, "evaluation.bootstrap_samples": 100, "gate.min_items": 3,
        "evaluation.batch_size": 4, "lora.dropout": 0.0, "data.max_bad_fraction": 0.0,
        "data.max_seq_length": 1024, **more,
    }  # fmt: skip


def config_of(name: str, model: Path, rows: Path, output: Path, **more: Any) -> Any:
    """As `halo-forge NAME sft` resolves it: the domain's defaults under the settings."""
    flags = settings(model, rows, output, **options(name, **more))
    domain = KITS[name].domain or name
    return load_config(flags=flags, preset=get_domain(domain).defaults, preset_name=domain)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Any:
    made: dict[tuple[str, str], Finished] = {}

    def finish(name: str, method: str = "lora") -> Finished:
        if (name, method) not in made:
            root = tmp_path_factory.mktemp(name)
            model = KITS[name].model(root / "model", tiny_model_dir)
            rows = KITS[name].rows(root)
            resolved = config_of(name, model, rows, root / "run", **{"training.method": method})
            made[name, method] = Finished(resolved.config, run(resolved, until="gate"), rows, model)
        return made[name, method]

    return finish


def test_every_domain_has_a_kit() -> None:
    assert set(all_domains()) == {kit.domain or name for name, kit in KITS.items()}


@pytest.mark.parametrize("name", KITS)
def test_answers_are_trained_and_nothing_else(name: str, finished: Any) -> None:
    """Every row is there, its trained tokens are its answer with the token that stops it, no medium's placeholder is
    trained, and every placeholder that belongs to a medium stands where the medium says."""
    done: Finished = finished(name)
    tokenizer = tokenizer_of(done.config.model)
    prepared = done.result.prepared
    assert prepared is not None
    assert sum(source.dropped for source in prepared.sources) == 0
    for example in done.examples:
        trained = np.flatnonzero(example.loss_weights > 0)
        assert trained[-1] - trained[0] + 1 == len(trained)
        assert int(example.input_ids[trained[-1]]) in tokenizer.all_special_ids
        assert tokenizer.decode(example.input_ids[trained[:-1]]).strip()
        assert bool(example.media) == (name in WITH_MEDIA)
        for medium in example.media:
            span = slice(medium.place, medium.place + medium.num_tokens)
            assert not example.loss_weights[span].any()
            assert len(set(example.input_ids[span].tolist())) <= max(1, medium.num_tokens)


@pytest.mark.parametrize("name", WITH_MEDIA)
def test_what_is_seen_or_heard_changes_the_loss(name: str, finished: Any) -> None:
    """The same tokens with another row's image or sound have another likelihood; a file that changed is told."""
    done: Finished = finished(name)
    media = done.media()
    model = load_model(str(done.model), dtype=torch.float32, attn_implementation="eager")
    one, other = done.examples[:2]

    def nll(example: Example, media: Media = media) -> float:
        document = documents([example], media, CPU)
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(media.logits(model, document), document.targets))

    swapped = replace(
        one,
        media=tuple(
            replace(mine, path=theirs.path, sha256=theirs.sha256)
            for mine, theirs in zip(one.media, other.media, strict=True)
        ),
    )
    assert nll(one) == nll(one)
    assert abs(nll(swapped) - nll(one)) > 1e-4
    elsewhere = keep_bytes(read_medium(other.media[0]))
    changed = replace(one, media=(replace(one.media[0], path=elsewhere), *one.media[1:]))
    with pytest.raises(DataError, match="changed after the rows were prepared"):
        nll(changed, done.media())  # what another has read it may keep


@pytest.mark.parametrize("name", KITS)
def test_stopped_and_resumed_is_uninterrupted(name: str, finished: Any, tmp_path: Path) -> None:
    done: Finished = finished(name)
    resolved = config_of(name, done.model, done.rows, tmp_path / "run")
    tokenizer = tokenizer_of(resolved.config.model)
    run(resolved, until="data")
    directory = RunDirectory(tmp_path / "run")

    def check() -> None:
        if (tmp_path / "run" / "metrics.jsonl").exists() and len(losses(tmp_path / "run")) == 3:
            raise Interrupted("told to stop")

    prepared = Prepared(resolved.config, directory, load_prepared(directory), tokenizer)
    compute = Compute(device=CPU, precision="float32")
    with pytest.raises(Interrupted):
        train_now(prepared, compute=compute, check=check)
    assert len(losses(tmp_path / "run")) == 3 < len(losses(done.result.directory))
    train_now(prepared, compute=compute)
    assert losses(tmp_path / "run") == losses(done.result.directory)
    assert final_weights(tmp_path / "run") == final_weights(done.result.directory)


@pytest.mark.parametrize("name", KITS)
def test_a_plan_is_made(name: str, finished: Any, tmp_path: Path) -> None:
    done: Finished = finished(name)
    planned = plan(config_of(name, done.model, done.rows, tmp_path / "run"))
    assert planned.num_steps == len(losses(done.result.directory))


FREEZING = {
    "vlm": {"vision.freeze": ["tower", "projector"]},
    "audio": {"audio.freeze_encoder": True},
    "audio, a language model": {"audio.freeze_encoder": True},
}


@pytest.mark.parametrize("name", KITS)
def test_a_plan_counts_the_weights_that_are_trained(name: str, finished: Any) -> None:
    full = with_settings(finished(name).config, {"training.method": "full"})
    planned = []
    for config in (full, with_settings(full, FREEZING.get(name, {}))):
        model = load_training_model(config, Compute(device=CPU, precision="float32"), tokenizer_of(config.model))
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        shape = shape_to_train(config)
        planned.append(shape.num_parameters - shape.frozen)
        assert planned[-1] == sum(trained)
    assert (planned[1] < planned[0]) == (name in FREEZING)


@pytest.mark.parametrize("name", KITS)
def test_a_verdict_is_reached(name: str, finished: Any) -> None:
    """The gate judges, on likelihoods and answers of the whole holdout; what is measured is finite."""
    done: Finished = finished(name)
    assert done.result.decision is not None
    assert done.result.decision.verdict in ("PASS", "FAIL")
    assert done.result.report is not None
    overall = {row.metric: row for row in done.result.report.comparisons if row.slice == "all"}
    assert overall["perplexity"].tuned.value < overall["perplexity"].base.value
    assert overall["exact_match"].tuned.n == done.result.report.num_items > 3
    scores = read_scores(done.result.directory / "eval/scores.jsonl")  # held against itself, as a release would be
    again = {
        row.metric: row.delta.value
        for row in compare_versions(scores, scores, done.result.report, Resampling(0.95, 50, 0))
        if row.tuned.slice == "all"
    }
    assert set(again.values()) == {0}
    assert {"perplexity", "exact_match", *({"wer"} & overall.keys())} <= again.keys()
    answers = [json.loads(line) for line in (done.result.directory / "eval/answers.jsonl").read_text().splitlines()]
    assert all(bool(answer.get("media")) == (name in WITH_MEDIA) for answer in answers)
    measured = [row.tuned.value for row in overall.values() if row.tuned.status == "measured"]
    assert np.isfinite(measured).all()


@pytest.mark.parametrize("name", [pytest.param("vlm", marks=pytest.mark.soak), *WITH_MEDIA[1:]])
def test_a_run_in_bfloat16_comes_to_its_verdict_too(name: str, finished: Any, tmp_path: Path) -> None:
    """With samples at validations: these are answered in the middle of training, under autocast."""
    done: Finished = finished(name)
    half = {"training.bf16": True, "evaluation.sample_prompts": 2, "training.eval_steps": 2}
    result = run(config_of(name, done.model, done.rows, tmp_path / "run", **half), until="gate")
    assert json.loads((result.directory / "compute.json").read_text())["precision"] == "bfloat16"
    assert result.decision is not None
    assert result.decision.verdict in ("PASS", "FAIL", "INCONCLUSIVE")
    assert np.isfinite(losses(result.directory)).all()
    assert (result.directory / "samples.jsonl").read_text().strip()


@pytest.mark.parametrize(
    ("name", "method"),
    [  # a fresh process does not know the package of Moonshine
        ("vlm", "lora"),
        ("audio", "lora"),
        ("audio, a language model", "full"),
        pytest.param("vlm", "full", marks=pytest.mark.soak),
        pytest.param("audio", "full", marks=pytest.mark.soak),
        pytest.param("audio, a language model", "lora", marks=pytest.mark.soak),
    ],
)
def test_a_version_answers_in_a_fresh_process_as_it_was_trained(
    name: str, method: str, finished: Any, tmp_path: Path
) -> None:
    """And the lines of its model card load it, as adapter or whole."""
    done: Finished = finished(name, method)
    registry = str(tmp_path / "registry")
    section = done.config.publish.model_copy(update={"name": "tiny", "registry": registry, "force": True})
    release = publish_run(done.config.model_copy(update={"publish": section}))
    proof = json.loads((Path(release.path) / "proof.json").read_text())
    assert proof["status"] == "measured", proof
    assert proof["num_identical"] == proof["num_prompts"] >= 3
    directory = Path(release.path)
    lines = (directory / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    shown = "print(type(model).__name__, type(processor).__name__)"
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines + shown], cwd=directory, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert ("Peft" in told.stdout) == (method == "lora")
    assert "Processor" in told.stdout
