"""What halo-forge saves is what anybody loads: plain transformers and peft, in a process that knows nothing of us,
answer with the same numbers; and an adapter folded into its model answers as the two together."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoModelForSpeechSeq2Seq

from halo_forge.errors import TrainingError
from halo_forge.models import save
from halo_forge.models.adapters import add_lora
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.models.save import load_trained, merge_adapter, save_final

PROMPT = [{"role": "user", "content": "What is 12 + 30?"}]
# Loads argv[1] three ways and prints the logits of the rendered prompt, without halo-forge.
STRANGER = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, prompt, adapter = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "adapter"
answers = {}
for folder in (directory, directory + "/tokenizer"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    answers[folder.rpartition("/")[2]] = ids
loaders = [AutoModelForCausalLM]
if adapter:
    from peft import AutoPeftModelForCausalLM
    loaders.append(AutoPeftModelForCausalLM)
for loader in loaders:
    model = loader.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        answers[loader.__name__] = model(torch.tensor([ids])).logits[0, -1].tolist()
    stops = model.generation_config.eos_token_id
    answers.setdefault("stops", stops)
assert "halo_forge" not in sys.modules
print(json.dumps(answers))
"""


@pytest.fixture(params=["adapter", "full"])
def trained(request: pytest.FixtureRequest, tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path):
    """(kind, model in memory, its final_model/)"""
    model = tiny_llama(seed=3) if request.param == "full" else random_adapter(tiny_llama(seed=0))
    return request.param, model, save_final(model, tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir))


def random_adapter(model):
    """An adapter that changes the model visibly, as training would."""
    adapted = add_lora(model, r=8, alpha=16, dropout=0.1, target_modules="all-linear", seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted


def test_a_stranger_loads_the_same_model(trained, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, model, directory = trained
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    child = subprocess.run(
        [sys.executable, "-c", STRANGER, str(directory), json.dumps(PROMPT), kind],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    answers = json.loads(child.stdout)
    ids = tiny_tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert answers["final_model"] == answers["tokenizer"] == ids
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
    loaders = ["AutoModelForCausalLM"] + ["AutoPeftModelForCausalLM"] * (kind == "adapter")
    for name in loaders:
        assert torch.equal(torch.tensor(answers[name]), expected), name
    if kind == "full":
        assert answers["stops"] == 2


def test_a_merged_adapter_answers_as_the_adapter(tiny_llama, tiny_tokenizer, tiny_model_dir: Path, tmp_path: Path):
    adapted = random_adapter(tiny_llama(seed=0))
    ids = torch.randint(3, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base, tuned = tiny_llama(seed=0)(ids).logits, adapted(ids).logits
    directory = save_final(adapted, tiny_tokenizer, tmp_path / "final_model", str(tiny_model_dir))
    merged = merge_adapter(load_model(str(tiny_model_dir), dtype=torch.float32), directory)
    with torch.no_grad():
        answer = merged(ids).logits
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert not [name for name, _ in merged.named_modules() if "lora" in name]
    assert (answer - tuned).abs().max() < 1e-4
    assert (tuned - base).abs().max() > 0.1
    # A merged model is a model: saved and loaded, it still answers the same.
    again = load_trained(
        save_final(merged, tiny_tokenizer, tmp_path / "merged", str(tiny_model_dir)), dtype=torch.float32
    )
    with torch.no_grad():
        assert torch.equal(again(ids).logits, answer)


@pytest.mark.slow
def test_merging_holds_on_the_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(smollm2_path))
    adapted = random_adapter(load_model(str(smollm2_path), dtype=torch.float32))
    directory = save_final(adapted, tokenizer, tmp_path / "final_model", str(smollm2_path))
    ids = torch.tensor([tokenizer("The capital of France is Paris. " * 8)["input_ids"]])
    with torch.no_grad():
        tuned = adapted(ids).logits
        merged = merge_adapter(load_model(str(smollm2_path), dtype=torch.float32), directory)(ids).logits
    scale = tuned.abs().max()
    assert (merged - tuned).abs().max() < 1e-4 * scale
    assert (merged.argmax(-1) == tuned.argmax(-1)).float().mean() >= 0.99


@pytest.mark.parametrize(
    "family",
    [
        "llava",
        "gemma3",
        "qwen2_audio",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("idefics3", "smolvlm", "qwen2_vl")),
    ],
)
def test_whole_models_that_see_and_hear_are_saved_and_read_back(
    family: str, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    """transformers writes some of them under older names of their weights."""
    pytest.importorskip("PIL")
    from speech_runs import write_listener
    from vision_models import make_model

    make = write_listener if family == "qwen2_audio" else partial(make_model, family=family)
    base = make(tmp_path / "base", tokenizer_directory=tiny_tokenizer_dir)
    model = load_model(str(base), dtype=torch.float32)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(1e-2 * (number + 1))
    saved = save_final(model, load_tokenizer(str(base)), tmp_path / "final_model", str(base))
    again = load_model(str(saved), dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    written = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = next(name for name in written if "norm" in name and name.endswith("weight"))
    written[changed] += 1
    with pytest.raises(TrainingError, match="does not read back"):
        save._verify(saved, written, load_tokenizer(str(base)))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("kind", ["speech", "images"])
def test_adapters_of_models_that_hear_and_see_load_into_plain_peft(
    kind: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """As their model cards say: transformers' base, peft's adapter, the model's own inputs."""
    torch.manual_seed(0)
    if kind == "speech":
        pytest.importorskip("soundfile")
        from speech_runs import write_whisper

        base = write_whisper(tmp_path / "base")
        config = config_of(base)
        features = torch.randn(1, config["num_mel_bins"], 2 * config["max_source_positions"])
        inputs = {"input_features": features, "decoder_input_ids": torch.tensor([[1, 5, 7, 9]])}
    else:
        pytest.importorskip("PIL")
        from vision_models import make_model

        base = make_model(tmp_path / "base", "idefics3", tiny_model_dir)
        ids = [config_of(base)["image_token_id"]] * 4 + [7, 9, 11]
        inputs = {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(1, 1, 3, 16, 16)}
    model = random_adapter(load_model(str(base), dtype=torch.float32))
    with torch.no_grad():
        expected = model.get_base_model()(**inputs).logits
    saved = save_final(model, load_tokenizer(str(base)), tmp_path / "final_model", str(base))
    loader = AutoModelForSpeechSeq2Seq if kind == "speech" else AutoModelForImageTextToText
    plain = loader.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        untuned = plain(**inputs).logits
        tuned = PeftModel.from_pretrained(plain, saved).eval()(**inputs).logits
    assert (untuned - expected).abs().max() > 1e-3
    assert torch.allclose(tuned, expected, atol=1e-5)


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())
