"""A training step on images and text: ours against transformers' own Trainer with the collator of its recipes.

    python benchmarks/vlm.py                    about three minutes on two quiet cores
    python benchmarks/vlm.py --out FILE         keep the numbers

Both train the same model (smolvlm-graft: LoRA on the language model, tower and projector whole) from the same start on
the same rows in the same order, in float32, with the same AdamW. Theirs pads each batch by the model's own processor
and computes logits of every token, as transformers' recipe for image-text-to-text models does. Ours packs, and
computes logits where something is trained. Pairs are interleaved; each step's losses are compared.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from halo_forge.chat.records import Conversation, Example
from halo_forge.config.schema import Config
from halo_forge.data.conversion.formats import convert, format_of
from halo_forge.data.files.rows import Row
from halo_forge.domains.media import open_media
from halo_forge.media.store import media_parts, read_medium, settle_media
from halo_forge.models.compute import Compute
from halo_forge.models.load import load_tokenizer
from halo_forge.train.batches import examples_to_batch
from halo_forge.train.loss import model_objective
from halo_forge.train.methods import load_training_model

ROWS = Path(__file__).parent.parent / "examples" / "vlm" / "shapes.jsonl"
LEARNING_RATE = 1e-4


def conversations(count: int) -> list[Conversation]:
    found = []
    for line, text in enumerate(ROWS.read_text().splitlines()[:count], start=1):
        value = json.loads(text)
        row = Row(path=str(ROWS), line=line, value=value)
        found.append(settle_media(convert(row, format_of(value), media=True).conversation, ROWS.parent))
    return found


def recipe_collator(processor: Any) -> Any:
    """Texts by the chat template, images and padding by the processor, labels with padding and image tokens at -100:
    as the recipe, and with the prompt at -100 too, so that both train the same tokens."""

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows: list[Conversation] = [item["row"] for item in items]
        examples: list[Example] = [item["example"] for item in items]
        images = [
            [Image.open(BytesIO(read_medium(part))).convert("RGB") for part in media_parts(row.messages)]
            for row in rows
        ]
        texts = [
            processor.apply_chat_template(
                [
                    {"role": turn.role, "content": [{"type": "image"}] * len(media_parts((turn,)))
                     + [{"type": "text", "text": turn.text}]}
                    for turn in row.messages
                ],
                tokenize=False,
            )
            for row in rows
        ]  # fmt: skip
        batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for at, example in enumerate(examples):
            start = 0 if processor.tokenizer.padding_side == "right" else labels.shape[1] - len(example.input_ids)
            trained = torch.from_numpy(example.loss_weights > 0)
            place = slice(start, start + len(trained))
            labels[at, place][trained] = batch["input_ids"][at, place][trained]
        return {**batch, "labels": labels}

    return collate


class Timed(Trainer):
    """Notes when each step ends, and its loss."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def theirs(model: Any, processor: Any, items: list[dict[str, Any]], num_per_step: int) -> tuple[float, list[float]]:
    with tempfile.TemporaryDirectory() as directory:
        trainer = Timed(
            model=model, train_dataset=items, data_collator=recipe_collator(processor),
            args=TrainingArguments(
                directory, per_device_train_batch_size=num_per_step, num_train_epochs=1, learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True,
                remove_unused_columns=False, weight_decay=0.0, max_grad_norm=1.0, train_sampling_strategy="sequential",
                disable_tqdm=True,
            ),
        )  # fmt: skip
        trainer.losses = []
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started, trainer.losses


def ours(model: Any, media: Any, items: list[dict[str, Any]], num_per_step: int) -> tuple[float, list[float]]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    objective = model_objective(model, "float32", media=media)
    losses = []
    model.train()
    started = time.perf_counter()
    for start in range(0, len(items), num_per_step):
        batch = examples_to_batch(
            [item["example"] for item in items[start : start + num_per_step]], media_inputs=media.inputs
        )
        objective.refresh()
        loss, _ = objective.nll(batch, batch.weights / batch.weights.sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.perf_counter() - started, losses


def main(pairs: int, steps: int, num_per_step: int, out: Path | None) -> None:
    config = Config.model_validate(
        {
            "model": {"name": "smolvlm-graft"}, "vision": {"freeze": []},
            "lora": {
                "dropout": 0.0, "modules_to_save": ["vision_model", "connector"],
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            },
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(config.model.name)
    media: Any = open_media(config, tokenizer)
    rows = conversations(steps * num_per_step)
    encoded = media.encoder(config.data).encode_batch(rows)
    items = [{"row": row, "example": encoded.example(at, row.id)} for at, row in enumerate(rows)]
    start = load_training_model(config, Compute(device=torch.device("cpu"), precision="float32"), tokenizer)
    media.logits(copy.deepcopy(start), examples_to_batch([items[0]["example"]], media_inputs=media.inputs))
    found: list[dict[str, Any]] = []
    for pair in range(pairs):
        times: dict[str, tuple[float, list[float]]] = {}
        for who in ("ours", "theirs") if pair % 2 == 0 else ("theirs", "ours"):
            model = copy.deepcopy(start)
            media.eyes.kept.clear()
            media.forwards.clear()
            way = ours(model, media, items, num_per_step) if who == "ours" else theirs(
                model, media.eyes.processor, items, num_per_step
            )  # fmt: skip
            times[who] = way
        gap = max(abs(a - b) for a, b in zip(times["ours"][1], times["theirs"][1], strict=True))
        found.append({who: round(one[0], 2) for who, one in times.items()} | {"largest_loss_difference": round(gap, 5)})
        print(json.dumps(found[-1]), flush=True)
    ratio = statistics.median(one["theirs"] / one["ours"] for one in found)
    result = {
        "pairs": found, "steps": steps, "rows_a_step": num_per_step, "theirs_over_ours": round(ratio, 2),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "tokens": int(sum(len(item["example"].input_ids) for item in items)),
    }  # fmt: skip
    print(json.dumps(result))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    main(given.pairs, given.steps, given.rows, given.out)
