"""A version is published only if its bytes, loaded anew, answer as the trained model did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from halo_forge.artifacts import EvalReport, GateDecision, TrainedModel
from halo_forge.config import load_config
from halo_forge.data import load_prepared
from halo_forge.pipeline import run as run_pipeline
from halo_forge.publish import PublishRefused, prove_reload, publish, verify_release
from halo_forge.publish.manifest import read_manifest
from halo_forge.publish.proof import Proof, proof_request
from halo_forge.publish.reload import prove
from halo_forge.runs import RunDirectory, read_artifact
from training_runs import settings, write_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run directory up to the gate."""
    root = tmp_path_factory.mktemp("published-bytes")
    more = {
        "training.max_steps": 6, "training.learning_rate": 5e-3, "data.holdout_split": 0.4,
        "evaluation.max_new_tokens": 12, "evaluation.bootstrap_samples": 100, "publish.force": True,
        "publish.registry": str(root / "registry"), "publish.name": "tiny", "lora.dropout": 0.0,
    }  # fmt: skip
    flags = settings(tiny_model_dir, write_rows(root / "rows.jsonl", 60), root / "run", **more)
    run_pipeline(load_config(flags=flags), until="gate")
    return root / "run"


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def records(place: Path) -> tuple[Any, ...]:
    flags = {"output.dir": (str(place), "test"), "publish.registry": (str(place.parent / "registry"), "test")}
    config = load_config(place / "config.resolved.yaml", flags=flags).config
    run = RunDirectory(place)
    return (
        config, run, read_artifact(run.file("trained.json"), TrainedModel),
        read_artifact(run.file("eval/report.json"), EvalReport), read_artifact(run.file("gate.json"), GateDecision),
        load_prepared(run),
    )  # fmt: skip


def proof_of(place: Path) -> Proof:
    """In this process, which has torch already."""
    config, run, trained, _, _, prepared = records(place)
    return Proof.model_validate(prove(proof_request(place / "final_model", config, run, trained, prepared)))


def in_this_process(staging: Path, config: Any, run: Any, trained: Any, prepared: Any) -> Proof:
    return Proof.model_validate(prove(proof_request(staging, config, run, trained, prepared)))


def test_the_trained_model_is_published_with_its_proof(place: Path) -> None:
    release = publish(*records(place), prove=prove_reload)
    directory = Path(release.path)
    proof = Proof.model_validate_json((directory / "proof.json").read_bytes())
    assert (proof.status, proof.ok, proof.mismatches) == ("measured", True, ())
    assert proof.num_prompts == proof.num_identical == proof.num_recorded == 20
    assert proof.num_tokens > 20
    manifest = read_manifest(directory)
    assert manifest.base_model_sha256 == proof.base_model_sha256
    assert manifest.proof_sha256 is not None
    assert verify_release(directory.parents[1], "tiny", 1).ok


def edit_json(path: Path, **fields: Any) -> None:
    values = json.loads(path.read_bytes()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def swap_two_tokens(path: Path) -> None:
    spec = json.loads(path.read_bytes())
    vocab = spec["model"]["vocab"]
    first, second = [token for token, number in vocab.items() if number in (40, 41)]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(spec, ensure_ascii=False))


PLANTED = {
    "a wrong template": (
        lambda model: (model / "chat_template.jinja").write_text(
            (model / "chat_template.jinja").read_text().replace("assistant", "bot")
        ),
        "chat template",
    ),
    "a wrong template in the copy": (
        lambda model: (model / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}"),
        "tokenizer/chat template",
    ),
    "a lost stop token": (
        lambda model: edit_json(model / "generation_config.json", eos_token_id=None),
        "tokens that end an answer",
    ),
    "another stop token": (
        lambda model: edit_json(model / "generation_config.json", eos_token_id=0),
        "tokens that end an answer",
    ),
    "a swapped tokenizer file": (lambda model: swap_two_tokens(model / "tokenizer.json"), "tokenizer"),
    "a swapped tokenizer file in the copy": (
        lambda model: swap_two_tokens(model / "tokenizer" / "tokenizer.json"),
        "tokenizer/tokenizer",
    ),
    "adapter applied more strongly": (
        lambda model: edit_json(model / "adapter_config.json", lora_alpha=512),
        "answer that the evaluation recorded",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_difference_is_refused_with_evidence(place: Path, planted: str) -> None:
    plant, what = PLANTED[planted]
    plant(place / "final_model")
    with pytest.raises(PublishRefused, match="not the model that was trained") as caught:
        publish(*records(place), prove=in_this_process)
    assert what in caught.value.what
    assert "found" in str(caught.value.expected)
    evidence = Proof.model_validate_json((place / "publish_proof.json").read_bytes())
    assert evidence.ok is False
    assert not list((place.parent / "registry").glob("tiny/v*"))


def test_published_bytes_that_answer_otherwise_are_found(place: Path, tmp_path: Path) -> None:
    """The staged copy alone is wrong: the run's own model is asked beside it."""
    staged = tmp_path / "staged"
    shutil.copytree(place / "final_model", staged)
    edit_json(staged / "adapter_config.json", lora_alpha=512)
    config, run, trained, _, _, prepared = records(place)
    proof = Proof.model_validate(prove(proof_request(staged, config, run, trained, prepared)))
    assert proof.ok is False
    assert proof.mismatches[0].what.startswith("answer to golden prompt")
    assert proof.num_identical < proof.num_prompts


def test_without_a_proof_the_version_says_so(place: Path) -> None:
    release = publish(*records(place))
    proof = json.loads((Path(release.path) / "proof.json").read_text())
    assert (proof["status"], proof["ok"]) == ("not_measured", None)
