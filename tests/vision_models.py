"""Tiny vision-language models, one of each family: real configurations, processors and templates, random weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

FAMILIES = ("idefics3", "smolvlm", "llava", "qwen2_vl", "gemma3")
PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + "IMAGE" + "' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
MARKED = {
    "idefics3": "<image>",
    "smolvlm": "<image>",
    "llava": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
}
_IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
SPECIALS = {
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "llava": ["<image>"],
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
}
NAMED = {
    "gemma3": {
        "extra_special_tokens": {
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        },
    },
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def chat_template(family: str) -> str:
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        + PARTS.replace("IMAGE", MARKED[family])
        + "{{ '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def make_model(directory: Path, family: str, tokenizer_directory: Path, seed: int = 0) -> Path:
    """A model directory of that family that AutoModelForImageTextToText and AutoProcessor load."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory, **NAMED.get(family, {}))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[family]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = chat_template(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = _BUILDERS[family](tokenizer)
        for weight in model.parameters():  # transformers draws so small that nothing would depend on an image
            weight.data = weight.data + 0.08 * torch.randn_like(weight)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    if family == "smolvlm":  # its own processor cannot be made without a video processor
        path = directory / "processor_config.json"
        path.write_text(path.read_text().replace("Idefics3", "SmolVLM"))
    return directory


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
    }


def _idefics3(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT, **_ids(tokenizer)},
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
        scale_factor=2, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    return Idefics3ForConditionalGeneration(config), processor


def _smolvlm(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    like, processor = _idefics3(tokenizer)
    fields = like.config.to_dict()
    fields["vision_config"]["model_type"] = "smolvlm_vision"
    fields.pop("model_type")
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**fields)), processor


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8, projection_dim=16,
        ),
        text_config=LlamaConfig(**TEXT, **_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def _qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    token = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            **TEXT, **_ids(tokenizer), "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "embed_dim": 16, "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
            "mlp_ratio": 2,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    return Qwen2VLForConditionalGeneration(config), qwen2_processor(images, tokenizer)


def qwen2_processor(images: Any, tokenizer: Any) -> Any:
    """transformers' own processor without the video processor that its constructor wants, and torchvision with it."""
    from transformers import Qwen2VLProcessor

    class Processor(Qwen2VLProcessor):
        def __init__(self) -> None:
            self.image_processor, self.tokenizer, self.chat_template = images, tokenizer, tokenizer.chat_template
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = map(
                tokenizer.convert_tokens_to_ids, (self.image_token, self.video_token)
            )

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def save_pretrained(self, directory: Any, **kwargs: Any) -> None:
            images.save_pretrained(directory)
            tokenizer.save_pretrained(directory)

    return Processor()


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, SiglipVisionConfig
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = Gemma3Config(
        text_config={**TEXT, **_ids(tokenizer), "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8},
        vision_config=SiglipVisionConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=4,
        ).to_dict(),
        mm_tokens_per_image=4, boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)
    return Gemma3ForConditionalGeneration(config), processor


_BUILDERS = {"idefics3": _idefics3, "smolvlm": _smolvlm, "llava": _llava, "qwen2_vl": _qwen2_vl, "gemma3": _gemma3}


def draw(seed: int, width: int = 20, height: int = 14) -> bytes:
    """The bytes of a small PNG with a coloured square somewhere on it."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    y, x = random.integers(0, height // 2), random.integers(0, width // 2)
    pixels[y : y + height // 2, x : x + width // 2] = random.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
