"""A Whisper training step against transformers' own Seq2SeqTrainer recipe: same weights, sounds, transcripts and loss.

    OMP_NUM_THREADS=1 python benchmarks/whisper.py [--model whisper-tiny.en] [--sounds 8] [--pairs 5] [--write]

The recipe is that of transformers' documentation: features padded to 30 s (made before, in neither time), labels padded
to the longest transcript with -100, `freeze_encoder()` where the encoder is frozen, `Seq2SeqTrainer.training_step`,
clipping and AdamW. Its prefix is masked, too, so that both have one loss. Pairs are interleaved and change sides.
Measured is CPU time of the process, which a busy machine moves less than the clock on the wall; run with one thread.

    frozen        the encoder is frozen and its output for these sounds is known from an epoch before
    frozen_first  the same in the first epoch, where it has to be computed
    full          everything is trained
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halo_forge.chat.records import Conversation, MediaPart, Message, SourceRef, TextPart
from halo_forge.config.schema import Config
from halo_forge.domains.audio.whisper import WhisperMedia
from halo_forge.domains.media import open_media
from halo_forge.media.sounds import wav_bytes
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.train.batches import Batch, examples_to_batch
from halo_forge.train.loss import model_objective
from halo_forge.train.optimizer import make_optimizer
from halo_forge.train.step import train_step

SUMMARIES: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "least": min, "most": max}
RESULTS = Path(__file__).parent / "results" / "whisper.json"
WORDS = ("postman", "carried", "copper", "kettles", "canal", "sunrise", "market", "sold")


def rows(directory: Path, num: int) -> list[Conversation]:
    """Sounds of 2 to 6 seconds (noise: what is heard costs the same) with transcripts of 6 to 20 words."""
    numbers = np.random.default_rng(0)
    found = []
    for number in range(num):
        samples = (0.1 * numbers.standard_normal(16_000 * int(numbers.integers(2, 7)))).astype(np.float32)
        path = directory / f"{number}.wav"
        path.write_bytes(wav_bytes(samples, 16_000))
        sound = MediaPart(kind="audio", path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        text = " ".join(numbers.choice(WORDS, int(numbers.integers(6, 21))).tolist())
        turns = Message(role="user", parts=(sound,)), Message(role="assistant", parts=(TextPart(text=text),))
        found.append(Conversation(id=f"{number:064x}", messages=turns, source=SourceRef(path="rows", line=number + 1)))
    return found


def recipe_step(model: Any, batch: Batch, prefix: tuple[int, ...]) -> Callable[[], float]:
    """One step of the recipe on the documents of `batch`; gives the loss."""
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    documents = batch.input_ids[0].split(batch.document_lengths)
    features = batch.media["input_features"][batch.media["feature_row"]]
    labels = torch.nn.utils.rnn.pad_sequence([ids[1:] for ids in documents], batch_first=True, padding_value=-100)
    decoder_ids = torch.nn.utils.rnn.pad_sequence(
        [ids[:-1] for ids in documents], batch_first=True, padding_value=model.config.pad_token_id
    )
    labels[:, : len(prefix) - 1] = -100
    with tempfile.TemporaryDirectory() as scratch:
        arguments = Seq2SeqTrainingArguments(output_dir=scratch, report_to=[], use_cpu=not torch.cuda.is_available())
        trainer = Seq2SeqTrainer(model=model, args=arguments)
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.0)
    inputs = {"input_features": features, "decoder_input_ids": decoder_ids, "labels": labels}

    def step() -> float:
        loss = trainer.training_step(model, dict(inputs))
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def our_step(model: Any, media: WhisperMedia, examples: list[Any], batch: Batch, *, warm: bool) -> Callable[[], float]:
    """One step of ours; `warm` with what a former epoch kept of the sounds."""
    objective = model_objective(model, "float32", media=media)
    optimizer = make_optimizer(model.parameters(), Config().training)
    kept = examples_to_batch(examples, media_inputs=media.inputs) if warm else batch

    def step() -> float:
        if not warm:
            media.kept.outputs.clear()
        return train_step(objective, optimizer, [kept], learning_rate=0.0, max_grad_norm=1.0).loss

    return step


def measure(mode: str, name: str, num_sounds: int, num_pairs: int) -> dict[str, Any]:
    tokenizer = load_tokenizer(name)
    frozen = mode != "full"
    config = Config.model_validate({"model": {"name": name}, "audio": {"freeze_encoder": frozen}})
    media = open_media(config, tokenizer)
    assert isinstance(media, WhisperMedia)
    with tempfile.TemporaryDirectory() as scratch:
        conversations = rows(Path(scratch), num_sounds)
        encoded = media.encoder(config.data).encode_batch(conversations)
        examples = [encoded.example(row, one.id) for row, one in enumerate(conversations)]
        batch = examples_to_batch(examples, media_inputs=media.inputs)  # type: ignore[arg-type]
        ours, theirs = (load_model(name, dtype=torch.float32, attn_implementation="sdpa") for _ in range(2))
        media.configure(ours)
        if frozen:
            theirs.freeze_encoder()
        for model in (ours, theirs):
            model.train()
        recipe = recipe_step(theirs, batch, media.transcripts.prefix)
        our_step(ours, media, examples, batch, warm=False)()
        own = our_step(ours, media, examples, batch, warm=mode == "frozen")
    return {"mode": mode, **compare(own, recipe, num_pairs)}


def compare(own: Callable[[], float], recipe: Callable[[], float], num_pairs: int) -> dict[str, Any]:
    losses = {"ours": own(), "recipe": recipe()}  # warms both up
    times: dict[str, list[float]] = {"ours": [], "recipe": []}
    sides = [("ours", own), ("recipe", recipe)]
    for pair in range(num_pairs):
        for label, step in sides if pair % 2 else sides[::-1]:
            started = time.process_time()
            step()
            times[label].append(time.process_time() - started)
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["recipe"], strict=True)]
    return {
        "loss": losses,
        "step_cpu_s": {label: round(statistics.median(found), 3) for label, found in times.items()},
        "speedup": {name: round(of(ratios), 2) for name, of in SUMMARIES.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--sounds", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULTS.name}")
    asked = parser.parse_args()
    modes = [measure(mode, asked.model, asked.sounds, asked.pairs) for mode in ("frozen", "frozen_first", "full")]
    result = {
        "model": asked.model, "sounds": asked.sounds, "pairs": asked.pairs, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "modes": modes,
    }  # fmt: skip
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if asked.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
