"""New tokens: rows that start as the mean, that LoRA trains with, and that plain transformers and peft load again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from halo_forge.config.schema import ModelSection
from halo_forge.errors import UsageError
from halo_forge.models.adapters import add_lora, base_model_view, trainable_state
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.models.lora_options import LoraOptions
from halo_forge.models.new_tokens import add_rows, new_token_ids, tokenizer_of
from halo_forge.models.quiet import quiet_transformers
from halo_forge.models.save import load_trained, merge_adapter, save_final

STRANGER = """
import sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, kind, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(directory)
ids = tokenizer("find <tool>x</tool> now")["input_ids"]
loader = AutoPeftModelForCausalLM if kind == "lora" else AutoModelForCausalLM
model = loader.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits
assert "halo_forge" not in sys.modules
torch.save({"ids": ids, "logits": logits}, out)
"""


@pytest.fixture(params=["tied", "untied"])
def base_dir(request: pytest.FixtureRequest, tiny_llama, tiny_tokenizer, tmp_path: Path) -> Path:
    model: LlamaForCausalLM = tiny_llama(seed=0)
    if request.param == "untied":
        config = model.config
        config.tie_word_embeddings = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = LlamaForCausalLM(config).eval()
    with quiet_transformers():
        model.save_pretrained(tmp_path / "base")
        tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def section(base_dir: Path) -> ModelSection:
    return ModelSection(name=str(base_dir), add_tokens=["<tool>", "</tool>"], add_special_tokens=["<|call|>"])


def grown(base_dir: Path):
    """(tokenizer with three new tokens, model with their rows, their ids)"""
    tokenizer = tokenizer_of(section(base_dir))
    ids = new_token_ids(tokenizer, section(base_dir))
    model = load_model(str(base_dir), dtype=torch.float32)
    add_rows(model, ids)
    return tokenizer, model, ids


def disturb(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def with_lora(model, ids: list[int]):
    return add_lora(
        model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=1, options=LoraOptions(token_ids=ids)
    )


def test_the_tokenizer_has_them_and_texts_too(base_dir: Path) -> None:
    tokenizer, _, ids = grown(base_dir)
    before = load_tokenizer(str(base_dir))
    assert ids == [512, 513, 514]
    assert tokenizer("a<tool>b")["input_ids"] == [
        *before("a")["input_ids"], 512, *before("b")["input_ids"],
    ]  # fmt: skip
    assert [tokenizer.added_tokens_decoder[i].special for i in ids] == [False, False, True]
    assert tokenizer.decode([512, 514], skip_special_tokens=True) == "<tool>"
    for token in ("<tool>", "<|im_end|>"):
        with pytest.raises(UsageError, match="already a token"):
            tokenizer_of(ModelSection(name=str(base_dir), add_special_tokens=[token], add_tokens=["<tool>"]))


def test_a_new_row_is_the_mean_and_the_old_ones_stay(base_dir: Path) -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    _, model, ids = grown(base_dir)
    assert torch.equal(torch.get_rng_state(), state)
    before = load_model(str(base_dir), dtype=torch.float32)
    for end, old in (
        (model.get_input_embeddings(), before.get_input_embeddings()),
        (model.get_output_embeddings(), before.get_output_embeddings()),
    ):
        assert end.weight.shape[0] == 515
        assert torch.equal(end.weight[:512], old.weight)
        expected = old.weight.double().mean(0)
        assert (end.weight[ids].double() - expected).abs().max() < 1e-6
    tied = before.get_input_embeddings().weight is before.get_output_embeddings().weight
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.vocab_size == 515


def test_predictions_lose_no_more_than_the_share_of_new_tokens(base_dir: Path) -> None:
    """The point of the mean (Hewitt 2021); random rows of the model's own scale break it."""
    _, model, ids = grown(base_dir)
    before = load_model(str(base_dir), dtype=torch.float32)
    text = torch.randint(3, 500, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = before(text).logits.double().log_softmax(-1), model(text).logits.double().log_softmax(-1)
    loss = (old - new[..., :512]).max()
    bound = torch.log(torch.tensor(1 + len(ids) / 512, dtype=torch.float64))
    assert 0 < loss <= bound + 1e-5


def test_padding_rows_are_used_before_new_ones(tiny_llama) -> None:
    """Many models have more rows than tokens: the matrix keeps its size, the rows still start as the mean."""
    model = tiny_llama(seed=0, vocab_size=640)
    old = model.model.embed_tokens.weight[:512].double().mean(0)
    add_rows(model, [512, 513])
    assert model.model.embed_tokens.weight.shape[0] == 640
    assert (model.model.embed_tokens.weight[[512, 513]].double() - old).abs().max() < 1e-6


def test_lora_trains_exactly_these_rows(base_dir: Path) -> None:
    tokenizer, model, ids = grown(base_dir)
    whole = load_model(str(base_dir), dtype=torch.float32)
    add_rows(whole, ids)
    adapted = with_lora(model, ids)
    tied = whole.get_input_embeddings().weight is whole.get_output_embeddings().weight
    rows = {name: tensor for name, tensor in trainable_state(adapted).items() if "lora_" not in name}
    assert [tuple(tensor.shape) for tensor in rows.values()] == [(3, 64)] * (1 if tied else 2)
    text = torch.tensor([tokenizer("find <tool>x</tool> now, then <tool>y</tool>")["input_ids"]])
    for some in (adapted, whole):
        some(input_ids=text, labels=text).loss.backward()
    found = [p.grad for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name]
    ends = [whole.get_input_embeddings()] + ([] if tied else [whole.get_output_embeddings()])
    for gradient, end in zip(found, ends, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, end.weight.grad[ids], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_saved_is_what_anybody_loads(base_dir: Path, tmp_path: Path, kind: str) -> None:
    tokenizer, model, ids = grown(base_dir)
    if kind == "lora":
        model = with_lora(model, ids).eval()
    disturb(model)
    directory = save_final(model, tokenizer, tmp_path / "final_model", str(base_dir))
    if kind == "lora":
        size = (directory / "adapter_model.safetensors").stat().st_size
        assert size < 515 * 64 * 4  # the rows, never the whole embedding
    out = tmp_path / "answer.pt"
    child = subprocess.run(
        [sys.executable, "-c", STRANGER, str(directory), kind, str(out)],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    answer = torch.load(out, weights_only=True)
    text = torch.tensor([answer["ids"]])
    assert {512, 513} <= set(answer["ids"])
    with torch.no_grad():
        expected = model(text).logits
    assert torch.equal(answer["logits"], expected)
    loaded = load_trained(directory, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(text).logits, expected)
    assert load_tokenizer(str(directory)).get_vocab() == tokenizer.get_vocab()
    if kind == "lora":
        plain = load_model(str(base_dir), dtype=torch.float32)
        add_rows(plain, ids)
        with torch.no_grad(), base_model_view(loaded):
            assert torch.equal(loaded(text).logits, plain(text).logits)
        merged = merge_adapter(load_model(str(base_dir), dtype=torch.float32), directory)
        with torch.no_grad():
            assert (merged(text).logits - expected).abs().max() < 1e-4
        again = load_trained(save_final(merged, tokenizer, tmp_path / "merged", str(base_dir)), dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(again(text).logits, merged(text).logits)


def test_a_trained_token_is_generated(base_dir: Path) -> None:
    """The output row is live: what is trained to be answered is answered."""
    tokenizer, model, ids = grown(base_dir)
    adapted = with_lora(model, ids).train()
    text = torch.tensor([tokenizer("go <tool>river</tool>")["input_ids"]])
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        adapted(input_ids=text, labels=text).loss.backward()
        optimizer.step()
    prompt = torch.tensor([tokenizer("go ")["input_ids"]])
    length = text.shape[1] - prompt.shape[1]
    adapted.eval()
    with torch.no_grad():
        ids_now = prompt
        for _ in range(length):
            ids_now = torch.cat([ids_now, adapted(ids_now).logits[:, -1:].argmax(-1)], dim=1)
    assert tokenizer.decode(ids_now[0]) == "go <tool>river</tool>"
