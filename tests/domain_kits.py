"""For every domain: a tiny real model and rows of its kind. A domain without a kit fails the contract's first test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from training_runs import write_rows

NUM_ROWS = 40
OWN_DOMAIN = Path(__file__).parents[1] / "examples" / "own_domain"


@dataclass(frozen=True)
class Kit:
    """model   (directory to write into, a tiny text model's directory) -> the directory of a model of this domain
    rows    (directory) -> a file of NUM_ROWS rows
    domain  the domain's name where the kit has another: a second kind of model"""

    model: Callable[[Path, Path], Path]
    rows: Callable[[Path], Path]
    domain: str | None = None


def _text_model(directory: Path, tiny_model: Path) -> Path:
    return tiny_model


def _questions(directory: Path) -> Path:
    return write_rows(directory / "rows.jsonl", NUM_ROWS)


def _sums(directory: Path) -> Path:
    rows = [
        {"question": f"What is {n} plus {n % 7 + 1}?", "answer": f"{n} + {n % 7 + 1} = {2 * n}\n#### {n + n % 7 + 1}"}
        for n in range(NUM_ROWS)
    ]
    return _written(directory / "rows.jsonl", rows)


def _calls(directory: Path) -> Path:
    tool = {
        "type": "function",
        "function": {
            "name": "light",
            "description": "Switch a lamp.",
            "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
        },
    }
    call = {"type": "function", "function": {"name": "light", "arguments": {"room": "kitchen"}}}
    rows = []
    for n in range(NUM_ROWS):
        asked = {"role": "user", "content": f"Lamp number {n}, in the kitchen, please"}
        answers = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "assistant", "content": "No."}]
        rows.append({"messages": [asked, answers[n % 2]], "tools": [tool]})
    return _written(directory / "rows.jsonl", rows)


def _vision_model(directory: Path, tiny_model: Path) -> Path:
    from vision_models import make_model

    return make_model(directory, "idefics3", tiny_model)


def _pictures(directory: Path) -> Path:
    from vision_models import draw

    rows = []
    for n in range(NUM_ROWS):
        (directory / f"{n}.png").write_bytes(draw(n))
        asked = [{"type": "image", "path": f"{n}.png"}, {"type": "text", "text": "Which colour?"}]
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"Colour {n % 5}."}]
        rows.append({"messages": said})
    return _written(directory / "rows.jsonl", rows)


def _speech_model(directory: Path, tiny_model: Path) -> Path:
    from speech_runs import write_whisper

    return write_whisper(directory)


def _listening_model(directory: Path, tiny_model: Path) -> Path:
    from speech_runs import write_listener

    return write_listener(directory, tiny_model)


def _speech(directory: Path) -> Path:
    from speech_runs import write_speech

    return write_speech(directory, NUM_ROWS)


def _moonshine_model(directory: Path, tiny_model: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, MoonshineConfig, MoonshineForConditionalGeneration

    from halo_forge.runs import write_json

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = MoonshineConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        max_position_embeddings=64, decoder_start_token_id=tokenizer.bos_token_id or 1,
        bos_token_id=tokenizer.bos_token_id or 1, eos_token_id=tokenizer.eos_token_id, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MoonshineForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000}
    write_json(directory / "preprocessor_config.json", extractor)
    return directory


def _written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KITS = {
    "text": Kit(_text_model, _questions),
    "reasoning": Kit(_text_model, _sums),
    "agentic": Kit(_text_model, _calls),
    "vlm": Kit(_vision_model, _pictures),
    "audio": Kit(_speech_model, _speech),
    "audio, a language model": Kit(_listening_model, _speech, "audio"),
    "moonshine": Kit(_moonshine_model, _speech),
}


def install_own_domain(patch: pytest.MonkeyPatch, site: Path) -> None:
    """Put the example package of a domain where Python finds packages, with the metadata that pip writes."""
    described = site / "halo_forge_moonshine-0.1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: halo-forge-moonshine\nVersion: 0.1.0\n")
    (described / "entry_points.txt").write_text("[halo_forge.domains]\nmoonshine = moonshine_domain:MOONSHINE\n")
    patch.setattr(sys, "path", [str(site), str(OWN_DOMAIN), *sys.path])
    from halo_forge.domains import all_domains

    all_domains.cache_clear()
