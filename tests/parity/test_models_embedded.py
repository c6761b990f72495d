"""The embedded SmolLM2 against the file it came from: the weights transformers reads from it, what bfloat16 costs, and
the answer a language model should know."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from halo_forge.models import embedded
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.models.quiet import quiet_transformers

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def gguf_tensors(smollm2_path: Path) -> dict[str, torch.Tensor]:
    """The state dict as transformers' own GGUF reader makes it (about 15 s)."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            embedded.package_directory(), gguf_file=embedded.GGUF_FILE, dtype=torch.float32
        )
    return model.state_dict()


@pytest.mark.slow
def test_the_copy_holds_the_weights_of_the_file(smollm2_path: Path, gguf_tensors: dict[str, torch.Tensor]) -> None:
    ours = load_model(str(smollm2_path), dtype=torch.float32).state_dict()
    assert set(ours) == set(gguf_tensors)
    for name, tensor in gguf_tensors.items():
        assert torch.equal(ours[name], tensor.to(torch.bfloat16).float()), name


@pytest.mark.slow
def test_bfloat16_costs_a_fraction_of_what_four_bits_did(gguf_tensors: dict[str, torch.Tensor]) -> None:
    weight = gguf_tensors["model.layers.5.mlp.up_proj.weight"]
    rounding = (weight - weight.to(torch.bfloat16).float()).pow(2).mean()
    blocks = weight.reshape(-1, 32)  # Q4_1: 16 levels from the least to the greatest of every 32
    step = (blocks.amax(1) - blocks.amin(1)) / 15
    quantising = (step.pow(2) / 12).mean()
    assert (rounding / quantising).sqrt() < 0.02


def test_the_model_knows_the_capital_of_france(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(embedded.NAME)
    model = load_model(embedded.NAME, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    state = torch.get_rng_state()
    answers = [
        model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        for _ in range(2)
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert "Paris" in tokenizer.decode(answers[0])
    assert answers[0][-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.eos_token == "<|im_end|>"


def test_saved_and_loaded_again_it_answers_with_the_same_numbers(smollm2_path: Path, tmp_path: Path) -> None:
    from halo_forge.models.save import load_trained, save_final

    tokenizer = load_tokenizer(str(smollm2_path))
    model = load_model(str(smollm2_path), dtype=torch.bfloat16)
    ids = torch.tensor([tokenizer("Numbers: 1, 2, 3,")["input_ids"]])
    directory = save_final(model, tokenizer, tmp_path / "final_model", str(smollm2_path))
    with torch.no_grad():
        expected = model(ids).logits
        again = load_trained(directory, dtype=torch.bfloat16)
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.slow
def test_converting_is_quick_and_lean(smollm2_path: Path, tmp_path: Path) -> None:
    """In a process of its own: within a minute on a busy machine, under 1.2 GB, and with the same bytes."""
    program = (
        "import sys; from pathlib import Path; from halo_forge.models import embedded\n"
        "directory = Path(sys.argv[1]); directory.mkdir()\n"
        "embedded.convert(embedded.package_directory() / embedded.GGUF_FILE, directory)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "copy")], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - start < 300
    assert int(child.stdout) * 1024 < 1.2e9
    assert child.stderr == ""
    for path in smollm2_path.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes(), path.name
