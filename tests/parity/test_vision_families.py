"""Every family of vision-language models against transformers' own processor and forward pass."""

import hashlib
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from halo_forge.chat.records import Conversation, MediaPart, Message, SourceRef, TextPart
from halo_forge.config.schema import Config
from halo_forge.domains.media import open_media
from halo_forge.errors import DataError, RowError
from halo_forge.media.store import read_medium
from halo_forge.models.adapters import add_lora, base_model_view
from halo_forge.models.generate import Prompt
from halo_forge.models.load import load_model, load_tokenizer
from halo_forge.train.batches import examples_to_batch
from vision_models import FAMILIES, MARKED, draw, make_model, qwen2_processor

PACKING = [family for family in FAMILIES if family != "gemma3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_tokenizer_dir):
    made = {}

    def get(family):
        if family not in made:
            directory = make_model(tmp_path_factory.mktemp(family) / "model", family, tiny_tokenizer_dir)
            made[family] = directory
        return made[family]

    return get


def image_part(directory, seed, **size):
    data = draw(seed, **size)
    path = directory / f"{seed}-{size}.png"
    path.write_bytes(data)
    return MediaPart(kind="image", path=str(path), sha256=hashlib.sha256(data).hexdigest())


def row(*messages):
    roles = ("user", "assistant") * len(messages)
    parts = [tuple(TextPart(text=p) if isinstance(p, str) else p for p in message) for message in messages]
    return Conversation(
        id=str(hash(parts[0])), source=SourceRef(path="rows", line=1),
        messages=tuple(Message(role=role, parts=part) for role, part in zip(roles, parts, strict=False)),
    )  # fmt: skip


def rows(directory):
    """One image, two of other sizes and turns, none, two side by side."""
    one, two, three = (
        image_part(directory, seed, **size) for seed, size in ((1, {}), (2, {"width": 40}), (3, {"height": 31}))
    )
    return [
        row([one, "What is this?"], ["a box"]),
        row(["Look ", two, " and tell."], ["left"], [three, "And now?\n"], ["right, <b>up</b>"]),
        row(["What is the capital of France?"], ["Paris."]),
        row([two, "\n", three, "\n\nWhich?"], ["the answer is five"]),
    ]


def opened(directory, **vision):
    config = Config.model_validate({"model": {"name": str(directory)}, "vision": vision})
    tokenizer = load_tokenizer(str(directory))
    return open_media(config, tokenizer), load_model(str(directory), dtype=torch.float32), config


def encoded(media, config, conversations):
    batch = media.encoder(config.data).encode_batch(conversations)
    assert not batch.problems, batch.problems
    return [batch.example(at, str(at)) for at in range(len(conversations))]


def transformers_inputs(media, conversation):
    """What the family's own processor makes of the conversation."""
    processor, images = media.eyes.processor, []
    if media.eyes.family.grids:
        processor = qwen2_processor(processor.image_processor, media.tokenizer)
    messages = []
    for message in conversation.messages:
        parts = []
        for part in message.parts:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            else:
                from io import BytesIO

                from PIL import Image

                parts.append({"type": "image"})
                images.append(Image.open(BytesIO(read_medium(part))).convert("RGB"))
        messages.append({"role": message.role, "content": parts})
    text = processor.apply_chat_template(messages, tokenize=False)
    return processor(text=[text], images=[images] if images else None, add_special_tokens=False, return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_are_exactly_those_of_the_familys_processor(family, models, tmp_path):
    media, _, config = opened(models(family))
    conversations = rows(tmp_path)
    for conversation, example in zip(conversations, encoded(media, config, conversations), strict=True):
        expected = transformers_inputs(media, conversation)
        assert example.input_ids.tolist() == expected["input_ids"][0].tolist()
        tensors = media.inputs([example])
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[name]), name
        places = np.flatnonzero(np.isin(example.input_ids, list(media.eyes.placeholder_ids)))
        assert len(places) == sum(medium.num_tokens for medium in example.media)
        assert all(example.input_ids[medium.place] in media.eyes.placeholder_ids for medium in example.media)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_answers_are_trained_and_never_a_token_of_an_image(family, models, tmp_path):
    media, _, config = opened(models(family))
    conversations = rows(tmp_path)
    decode = media.tokenizer.decode
    examples = encoded(media, config, conversations)
    assert decode(examples[0].input_ids[examples[0].loss_weights > 0]) == "a box<|im_end|>"
    assert decode(examples[1].input_ids[examples[1].loss_weights > 0]) == "left<|im_end|>right, <b>up</b><|im_end|>"
    batch = media.encoder(config.data, train_on="all").encode_batch(conversations)
    for at in range(len(conversations)):
        everything = batch.example(at, "x")
        is_image = np.isin(everything.input_ids, list(media.eyes.placeholder_ids))
        assert not everything.loss_weights[is_image].any()
        assert everything.loss_weights[-2] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_marker_in_a_users_words_is_text(family, models, tmp_path):
    media, _, config = opened(models(family))
    marker = MARKED[family]
    asked = row([image_part(tmp_path, 1), f"What does {marker} mean?"], [f"It is {marker}."])
    batch = media.encoder(config.data).encode_batch([asked])
    example = batch.example(0, "x")
    assert batch.notes[0] == ("special_tokens_neutralised",)
    num_placeholders = int(np.isin(example.input_ids, list(media.eyes.placeholder_ids)).sum())
    assert num_placeholders == example.media[0].num_tokens == len(
        np.flatnonzero(np.isin(encoded(media, config, [row([asked.messages[0].parts[0], "?"], ["."])])[0].input_ids,
                               list(media.eyes.placeholder_ids)))
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_alone_are_transformers_own(family, models, tmp_path):
    media, model, config = opened(models(family))
    conversations = rows(tmp_path)
    for conversation, example in zip(conversations, encoded(media, config, conversations), strict=True):
        expected = model(**transformers_inputs(media, conversation)).logits[0]
        batch = examples_to_batch([example], media_inputs=media.inputs)
        with torch.no_grad():
            found = media.logits(model, batch)
        assert torch.allclose(found, expected[batch.positions], atol=2e-4), (
            (found - expected[batch.positions]).abs().max()
        )


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("family", PACKING)
def test_packed_documents_are_computed_as_alone(family, fast, models, tmp_path):
    media, model, config = opened(models(family))
    media.use_fast = fast
    examples = encoded(media, config, rows(tmp_path))
    with torch.no_grad():
        packed = media.logits(model, examples_to_batch(examples, media_inputs=media.inputs))
        alone = [media.logits(model, examples_to_batch([one], media_inputs=media.inputs)) for one in examples]
    assert (media.forward_of(model).fast is not None) == fast, media.forward_of(model).why
    assert torch.allclose(packed, torch.cat(alone), atol=2e-4)


@pytest.mark.parametrize("family", PACKING)
def test_the_written_out_layers_give_transformers_gradients(family, models, tmp_path):
    media, model, config = opened(models(family))
    batch = examples_to_batch(encoded(media, config, rows(tmp_path)), media_inputs=media.inputs)
    gradients = []
    for fast in (True, False):
        media.use_fast = fast
        media.forwards.clear()
        model.zero_grad()
        logits = media.logits(model, batch)
        torch.nn.functional.cross_entropy(logits[batch.rows], batch.targets).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    own, reference = gradients
    assert own.keys() == reference.keys()
    tower = media.eyes.family.parts["tower"][0]
    assert any(name.startswith(tower) and own[name].abs().max() > 1e-6 for name in own)
    for name, expected in reference.items():
        assert torch.allclose(own[name], expected, atol=1e-5 + 1e-3 * expected.abs().max()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_gives_another_loss_and_no_image_is_no_default(family, models, tmp_path):
    media, model, config = opened(models(family))
    pictures = [image_part(tmp_path, seed) for seed in (1, 2)]
    examples = encoded(media, config, [row([picture, "What is this?"], ["a box"]) for picture in pictures])
    assert examples[0].input_ids.tolist() == examples[1].input_ids.tolist()
    with torch.no_grad():
        logits = [media.logits(model, examples_to_batch([one], media_inputs=media.inputs)) for one in examples]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers_generate(family, models, tmp_path):
    media, model, _config = opened(models(family))
    prompts, expected = [], []
    for conversation in rows(tmp_path):
        ids, reference, stops, seen = media.question(conversation)
        assert reference == conversation.messages[-1].text
        prompts.append(Prompt(tuple(ids), frozenset(stops), media=seen))
        inputs = transformers_inputs(media, conversation)
        of_tokens = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        inputs = {name: value[:, : len(ids)] if name in of_tokens else value for name, value in inputs.items()}
        assert inputs["input_ids"][0].tolist() == ids
        with torch.no_grad():
            answer = model.generate(**inputs, do_sample=False, max_new_tokens=6, eos_token_id=list(stops))[
                0, len(ids) :
            ]
        expected.append([t for t in answer.tolist() if t not in stops])
    found = media.generate(model, prompts, decode=media.tokenizer.decode, max_new_tokens=6, batch_size=3)
    assert [list(one.token_ids) for one in found] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_eyes_travel_to_other_processes(family, models, tmp_path):
    media, _, config = opened(models(family))
    conversations = rows(tmp_path)
    there = pickle.loads(pickle.dumps(media))
    ours, theirs = (encoded(one, config, conversations) for one in (media, there))
    assert [e.input_ids.tolist() for e in ours] == [e.input_ids.tolist() for e in theirs]


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_parts_get_neither_gradient_nor_adapter(family, models):
    for frozen in (["tower"], ["tower", "projector"], ["language_model"], []):
        media, model, _ = opened(models(family), freeze=frozen)
        media.configure(model)
        prefixes = {part: media.eyes.family.parts[part] for part in ("tower", "projector", "language_model")}
        adapted = add_lora(model, r=2, alpha=2, dropout=0.0, target_modules="all-linear", seed=0)
        names = {name.split("base_model.model.")[1] for name, p in adapted.named_parameters() if p.requires_grad}
        assert names
        for part, beginnings in prefixes.items():
            inside = {n for n in names if any(n.startswith(f"{b}.") for b in beginnings)}
            if part == "tower" and family == "qwen2_vl":
                inside = {n for n in inside if not n.startswith("model.visual.merger")}
            assert bool(inside) == (part not in frozen) or (part == "projector" and family == "gemma3"), (part, inside)


def test_an_image_that_the_cut_would_tear_is_refused_by_name(models, tmp_path):
    media, _, _ = opened(models("idefics3"))
    first, late = image_part(tmp_path, 1), image_part(tmp_path, 2)
    data = Config.model_validate({"data": {"max_seq_length": 120, "overlong": "truncate"}}).data
    batch = media.encoder(data).encode_batch([
        row([first, "What?"], ["a " * 200]),
        row([first, "What?"], ["a " * 80], [late, "And?"], ["b"]),
    ])  # fmt: skip
    assert batch.notes[0] == ("truncated",)
    assert len(batch.example(0, "x").input_ids) == 120
    assert batch.problems[1].code == "media_truncated"


def test_the_base_view_of_an_adapted_model_is_the_base(models, tmp_path):
    media, model, config = opened(models("llava"))
    batch = examples_to_batch(encoded(media, config, rows(tmp_path)), media_inputs=media.inputs)
    with torch.no_grad():
        before = media.logits(model, batch)
        adapted = add_lora(model, r=2, alpha=8, dropout=0.3, target_modules="all-linear", seed=0).eval()
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.data.normal_()
        tuned = media.logits(adapted, batch)
        with base_model_view(adapted):
            base = media.logits(adapted, batch)
        assert torch.equal(tuned, media.logits(adapted, batch)), "dropout without a gradient"
    assert torch.allclose(base, before, atol=2e-4)
    assert (tuned - before).abs().max() > 0.1


def test_trained_weights_reach_their_working_copies(models, tmp_path):
    media, model, config = opened(models("idefics3"))
    batch = examples_to_batch(encoded(media, config, rows(tmp_path)), media_inputs=media.inputs)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = media.logits(model, batch)
        for weight in model.get_decoder().parameters():
            weight.mul_(1.5)
        after = media.logits(model, batch)
    assert (before - after).abs().max() > 0.05


def test_a_changed_file_is_told_and_a_lost_one(models, tmp_path):
    media, _, config = opened(models("llava"))
    part = image_part(tmp_path, 5)
    (example,) = encoded(media, config, [row([part, "What?"], ["a"])])
    media.eyes.kept.clear()
    (tmp_path / "5-{}.png").write_bytes(draw(6))
    with pytest.raises(DataError, match="changed"):
        media.inputs([example])
    problem = media.encoder(config.data).encode_batch([row([replace(part, path="/gone.png"), "?"], ["a"])]).problems[0]
    assert isinstance(problem, RowError)
    assert problem.code == "media_missing"


@pytest.mark.parametrize(("num_rows", "num_columns"), [(0, 0), (1, 1), (2, 3)])
def test_smolvlm_writes_an_image_as_idefics3_does(num_rows, num_columns):
    """Its own processor insists on videos, so Idefics3's stands in: the text of both for an image, tiled or not."""
    names = {"image_seq_len": 4, "fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    written = {
        kind.replace_image_token(
            SimpleNamespace(**names, global_image_token="<global-img>", global_image_tag="<global-img>"),
            {"rows": [[num_rows]], "cols": [[num_columns]]},
            0,
        )
        for kind in (transformers.Idefics3Processor, transformers.SmolVLMProcessor)
    }
    assert len(written) == 1
    assert written.pop().count("<image>") == 4 * (num_rows * num_columns + 1)
