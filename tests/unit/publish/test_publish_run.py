"""What becomes a version, and what is refused without leaving a trace."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from halo_forge.errors import DataError, ExitCode, HaloForgeError, UsageError
from halo_forge.publish import Manifest, PublishRefused, publish, show_release, verify_release
from halo_forge.publish.registry import slugify
from halo_forge.runs import RunDirectory, read_artifact, sha256_file, sha256_tree, write_artifact


def registry_of(built) -> Path:
    return Path(built.config.publish.registry)


def with_publish(config, **fields):
    return config.model_copy(update={"publish": config.publish.model_copy(update=fields)})


def assert_nothing_published(built) -> None:
    left = [path for path in registry_of(built).rglob("*") if path.is_file()] if registry_of(built).exists() else []
    assert left == []
    assert not list(registry_of(built).glob("*/.staging-*"))
    assert not built.run.file("release.json").exists()


def test_a_pass_becomes_version_one_with_every_file_bound(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "Stub Writer")
    release = publish(*built.records)
    directory = registry_of(built) / "stub-writer" / "v1"
    assert (release.name, release.version, release.path) == ("stub-writer", 1, str(directory))
    assert (release.verdict, release.forced) == ("PASS", False)
    assert (registry_of(built) / "stub-writer" / "latest").read_text() == "v1\n"

    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert {entry.path for entry in manifest.files} == names - {"manifest.json"}
    for entry in manifest.files:
        assert sha256_file(directory / entry.path) == entry.sha256
        assert (directory / entry.path).stat().st_size == entry.size_bytes
    assert all(stat.S_IMODE((directory / name).stat().st_mode) == 0o444 for name in names)
    assert {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer/tokenizer_config.json", "README.md",
        "gate.json", "eval/report.json", "data/manifest.json", "config.resolved.yaml", "reference.json",
    } <= names  # fmt: skip

    assert manifest.weights_sha256 == built.trained.weights_sha256
    assert manifest.weights_sha256 == sha256_tree(directory, names=["adapter_model.safetensors"])
    assert manifest.eval_report_sha256 == sha256_file(built.run.file("eval/report.json"))
    assert manifest.gate_sha256 == sha256_file(built.run.file("gate.json"))
    assert manifest.data_manifest_sha256 == sha256_file(built.run.file("data/manifest.json"))
    assert manifest.split_sha256["holdout"] == built.report.holdout_sha256
    assert manifest.config == built.config.to_dict()
    assert manifest.base_model == "smollm2-135m-instruct"
    assert manifest.provenance.libraries["numpy"] == np.__version__
    assert (manifest.parent_version, manifest.parent_manifest_sha256) == (None, None)
    assert release.manifest_sha256 == sha256_file(directory / "manifest.json")
    assert read_artifact(built.run.file("release.json"), type(release)) == release
    assert verify_release(registry_of(built), "stub-writer", 1).ok


def test_what_an_iteration_was_made_from_is_bound_to_its_version(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    built.run.file("iteration.json").write_text('{"rows_sha256": "ab"}')
    kept = Path(publish(*built.records).path) / "iteration.json"
    assert kept.read_text() == '{"rows_sha256": "ab"}'
    assert verify_release(registry_of(built), "run", 1).ok
    kept.unlink()
    kept.write_text('{"rows_sha256": "cd"}')
    assert not verify_release(registry_of(built), "run", 1).ok


def test_the_same_content_is_not_released_twice(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    notes: list[str] = []
    first = publish(*built.records, notify=lambda _, fields: notes.append(fields["text"]))
    again = publish(*built.records, notify=lambda _, fields: notes.append(fields["text"]))
    assert again == first
    assert notes == ["published run v1", "already published, nothing new to release: run v1"]
    assert not (registry_of(built) / "run" / "v2").exists()


def test_a_measurement_repeated_on_the_same_weights_is_the_same_content(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    publish(*built.records)
    report = built.report.model_copy(update={"time_s": 1.5})
    write_artifact(built.run.file("eval/report.json"), report)
    decision = builder.decision_for(built.config, report, built.run)
    release = publish(built.config, built.run, built.trained, report, decision, built.prepared)
    assert release.version == 1


def test_new_weights_are_the_next_version_and_name_their_parent(builder: ModuleType, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        built = builder.build_run(tmp_path / str(seed) / "run", registry=tmp_path / "registry", seed=seed)
        assert publish(*built.records).version == seed
    home = tmp_path / "registry" / "run"
    manifests = [Manifest.model_validate_json((home / f"v{n}" / "manifest.json").read_bytes()) for n in (1, 2, 3)]
    assert [manifest.parent_version for manifest in manifests] == [None, 1, 2]
    assert manifests[2].parent_manifest_sha256 == sha256_file(home / "v2" / "manifest.json")
    assert show_release(tmp_path / "registry", "run").version == 3


@pytest.mark.parametrize(
    ("verdict", "exit_code"), [("FAIL", ExitCode.GATE_FAILED), ("INCONCLUSIVE", ExitCode.EVIDENCE_INSUFFICIENT)]
)
def test_without_a_pass_nothing_is_published(
    builder: ModuleType, tmp_path: Path, verdict: str, exit_code: ExitCode
) -> None:
    built = builder.build_run(tmp_path / "run", verdict=verdict)
    with pytest.raises(HaloForgeError) as caught:
        publish(*built.records)
    assert caught.value.exit_code == exit_code
    assert built.decision.rules[0].reason in str(caught.value)
    assert built.decision.rules[0].next_action in str(caught.value)
    assert_nothing_published(built)


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_a_forced_version_says_so_everywhere(builder: ModuleType, tmp_path: Path, verdict: str) -> None:
    built = builder.build_run(tmp_path / "run", verdict=verdict)
    release = publish(with_publish(built.config, force=True), *built.records[1:])
    directory = Path(release.path)
    assert release.forced
    assert release.verdict == verdict
    assert json.loads((directory / "manifest.json").read_text())["forced"] is True
    assert "Published by force" in (directory / "README.md").read_text()


def test_force_does_not_mark_a_version_that_passed(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    release = publish(with_publish(built.config, force=True), *built.records[1:])
    assert not release.forced
    assert "by force" not in (Path(release.path) / "README.md").read_text()


def test_a_pass_over_a_failed_rule_is_refused(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run", verdict="FAIL")
    edited = built.decision.model_copy(update={"verdict": "PASS"})
    with pytest.raises(PublishRefused, match="its rule"):
        publish(built.config, built.run, built.trained, built.report, edited, built.prepared)
    assert_nothing_published(built)


def test_weights_changed_after_the_gate_are_refused(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    builder.write_adapter(built.run.file("final_model"), seed=99)
    with pytest.raises(PublishRefused, match="not the ones the gate judged"):
        publish(with_publish(built.config, force=True), *built.records[1:])
    assert_nothing_published(built)


@pytest.mark.parametrize(
    ("record", "field", "match"),
    [
        ("trained", "weights_sha256", "other weights than were trained"),
        ("report", "weights_sha256", "measured other weights"),
        ("report", "time_s", "another evaluation report"),
        ("report", "holdout_sha256", "another"),
        ("decision", "report_sha256", "another evaluation report"),
        ("decision", "weights_sha256", "other weights"),
    ],
)
def test_records_of_different_runs_do_not_mix(
    builder: ModuleType, tmp_path: Path, record: str, field: str, match: str
) -> None:
    built = builder.build_run(tmp_path / "run")
    records = {name: getattr(built, name) for name in ("trained", "report", "decision")}
    changed = 2.0 if field == "time_s" else "0" * 64
    records[record] = records[record].model_copy(update={field: changed})
    with pytest.raises(PublishRefused, match=match):
        publish(built.config, built.run, *records.values(), built.prepared)
    assert_nothing_published(built)


def test_a_holdout_of_another_run_is_refused(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    splits = dict(built.prepared.splits)
    splits["holdout"] = splits["holdout"].model_copy(update={"sha256": "1" * 64})
    prepared = built.prepared.model_copy(update={"splits": splits})
    with pytest.raises(PublishRefused, match="another holdout"):
        publish(built.config, built.run, built.trained, built.report, built.decision, prepared)
    assert_nothing_published(built)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training_args.bin", b"anything"),
        ("tokenizer/extra.PKL", b"anything"),
        ("optimizer.pt", b"anything"),
        ("innocent.dat", b"\x80\x04\x95\x10\x00"),
        ("innocent.model", b"PK\x03\x04rest of a torch archive"),
    ],
)
def test_pickles_are_never_published(builder: ModuleType, tmp_path: Path, name: str, content: bytes) -> None:
    built = builder.build_run(tmp_path / "run")
    (built.run.file("final_model") / name).write_bytes(content)
    with pytest.raises(DataError, match="pickle"):
        publish(*built.records)
    assert_nothing_published(built)


def test_links_in_the_model_are_refused(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    (tmp_path / "secret").write_text("elsewhere")
    (built.run.file("final_model") / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="plain files"):
        publish(*built.records)
    assert_nothing_published(built)


@pytest.mark.parametrize("name", ["Caps", "-x", "a/b", "..", "a" * 65, "", "x\n", "ä"])
def test_names_that_do_not_fit_are_refused(builder: ModuleType, tmp_path: Path, name: str) -> None:
    built = builder.build_run(tmp_path / "run")
    with pytest.raises(UsageError, match="cannot be a model name"):
        publish(with_publish(built.config, name=name), *built.records[1:])
    assert_nothing_published(built)


@pytest.mark.parametrize(
    ("text", "slug"),
    [("My Model (v2)", "my-model-v2"), ("..", "model"), ("_x_", "x"), ("ÄÖ", "model"), ("a" * 90, "a" * 64)],
)
def test_slug_of_a_directory_name(text: str, slug: str) -> None:
    assert slugify(text) == slug


# ---------------------------------------------------------------------------------------------- storage


def test_a_registry_that_cannot_be_written_is_one_clear_error(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("not a directory")
    built = builder.build_run(tmp_path / "run", registry=tmp_path / "a_file" / "registry")
    with pytest.raises(HaloForgeError, match="nothing was published: Not a directory") as caught:
        publish(*built.records)
    assert caught.value.fix == "choose another directory with publish.registry"
    assert not built.run.file("release.json").exists()


def test_a_read_only_registry_is_one_clear_error(builder: ModuleType) -> None:
    """Root may write anywhere, so as root the publisher takes another user's id first."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        built = builder.build_run(Path(place) / "run")
        registry_of(built).mkdir(mode=0o555)
        limit = "import os; os.seteuid(65534)" if os.geteuid() == 0 else ""
        answer = run_publisher(PUBLISHER.format(limit=limit), built)
        assert answer.returncode == 7, answer.stderr
        assert "nothing was published: Permission denied" in answer.stdout
        assert "publish.registry" in answer.stdout
        assert_nothing_published(built)


def test_a_disk_that_fills_while_writing_leaves_no_part(builder: ModuleType, tmp_path: Path) -> None:
    """A process whose files may not grow past 8 kB meets the same OSError as one on a full disk, halfway."""
    built = builder.build_run(tmp_path / "run")
    write_model_bytes(built.run.file("final_model") / "chat_template.jinja", 100_000)
    script = PUBLISHER.format(limit=f"resource.setrlimit(resource.RLIMIT_FSIZE, ({8192}, {8192}))")
    answer = run_publisher(script, built)
    assert answer.returncode == 7, answer.stderr
    assert "nothing was published: File too large" in answer.stdout
    assert_nothing_published(built)


def write_model_bytes(path: Path, num_bytes: int) -> None:
    path.write_bytes(b"x" * num_bytes)


PUBLISHER = textwrap.dedent("""
    import json, resource, sys
    from pathlib import Path
    from halo_forge.artifacts import EvalReport, GateDecision, PreparedData, TrainedModel
    from halo_forge.config.schema import Config
    from halo_forge.errors import HaloForgeError
    from halo_forge.publish import publish
    from halo_forge.runs import RunDirectory, read_artifact
    {limit}
    run = RunDirectory(Path(sys.argv[1]))
    config = Config.model_validate(json.loads(run.file("run.json").read_text())["config"])
    files = dict(trained=(TrainedModel, "trained.json"), report=(EvalReport, "eval/report.json"),
                 decision=(GateDecision, "gate.json"), prepared=(PreparedData, "data/manifest.json"))
    try:
        release = publish(config, run, **{{k: read_artifact(run.file(f), t) for k, (t, f) in files.items()}})
        print(release.version)
    except HaloForgeError as error:
        print(error)
        raise SystemExit(7)
    assert "torch" not in sys.modules
""")


def run_publisher(script: str, built) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(built.run.path)], capture_output=True, text=True, timeout=120, check=False
    )


def test_publishing_imports_no_torch(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    answer = run_publisher(PUBLISHER.format(limit=""), built)
    assert (answer.returncode, answer.stdout) == (0, "1\n"), answer.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# ---------------------------------------------------------------------------------------------- card and a real model


def test_the_card_states_what_the_records_hold(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    card = (Path(publish(*built.records).path) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "smollm2-135m-instruct"
    assert front["license"] == "apache-2.0"
    (result,) = front["model-index"][0]["results"]
    assert result["task"] == {"type": "text-generation"}
    values = {metric["type"]: (metric["value"], metric["name"]) for metric in result["metrics"]}
    assert values["perplexity"] == (1.28, "perplexity, n = 40, 95% interval 1.21 to 1.36")
    assert "schema_valid" not in values, "what was not measured is no result"
    assert "| perplexity | 9.41 (8.2 to 10.9) | 1.28 (1.21 to 1.36) |" in card
    assert "| schema\\_valid | not measured | not measured |" in card
    assert "| stubs.jsonl | prompt\\_completion | 570 | 567 | 1 | 3 |" in card
    assert "the library wrote" not in card
    assert "AutoPeftModelForCausalLM" in card


def test_hostile_names_stay_text_in_the_card(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    rule = built.decision.rules[0].model_copy(update={"reason": "<script>x</script>\n# Heading | [a](javascript:b)"})
    decision = built.decision.model_copy(update={"rules": (rule,)})
    trained = built.trained.model_copy(update={"model_name": "evil\n---\ninjected: true"})
    release = publish(built.config, built.run, trained, built.report, decision, built.prepared)
    card = (Path(release.path) / "README.md").read_text()
    assert "<script>" not in card
    assert "\n# Heading" not in card
    assert "\\[a\\]" in card
    front = yaml.safe_load(card[4 : card.index("\n---\n", 4)])
    assert set(front) == {"base_model", "library_name", "license", "pipeline_tag", "tags", "model-index"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_a_published_adapter_loads_with_plain_peft(builder: ModuleType, tmp_path: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    built = builder.build_run(tmp_path / "run")
    final_model = built.run.file("final_model")
    model.save_pretrained(final_model)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(64)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(final_model)
    trained, report, decision = rebound(builder, built)
    release = publish(built.config, built.run, trained, report, decision, built.prepared)

    ids = torch.tensor([[1, 2, 3, 4]])
    loaded = AutoPeftModelForCausalLM.from_pretrained(release.path)
    assert AutoTokenizer.from_pretrained(release.path)("w5").input_ids == [5]
    assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def rebound(builder: ModuleType, built):
    """The run's records for the weights that now lie in final_model."""
    sha256 = sha256_tree(built.run.file("final_model"), names=["adapter_model.safetensors"])
    trained = built.trained.model_copy(update={"weights_sha256": sha256})
    report = built.report.model_copy(update={"weights_sha256": sha256})
    write_artifact(built.run.file("trained.json"), trained)
    write_artifact(built.run.file("eval/report.json"), report)
    return trained, report, builder.decision_for(built.config, report, built.run)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(builder: ModuleType, tmp_path: Path, bad: float) -> None:
    built = builder.build_run(tmp_path / "run")
    values = np.ones((3, 5), dtype=np.float16)
    values[2, 4] = bad
    file = built.run.file("final_model") / "adapter_model.safetensors"
    save_file({"good": np.ones(4, dtype=np.float32), "layers.0.bad": values}, file)
    with pytest.raises(DataError, match=r"layers\.0\.bad holds NaN or infinity"):
        publish(built.config, built.run, *rebound(builder, built), built.prepared)
    assert_nothing_published(built)


def test_a_run_without_final_model_is_refused(builder: ModuleType, tmp_path: Path) -> None:
    built = builder.build_run(tmp_path / "run")
    for name in ("missing", "../run/final_model", str(tmp_path)):
        trained = built.trained.model_copy(update={"final_model": name})
        with pytest.raises(DataError, match="no final model"):
            publish(built.config, RunDirectory(built.run.path), trained, *built.records[3:])
    assert_nothing_published(built)
