"""A real Whisper of 0.1 million weights, a tokenizer with Whisper's special tokens, and sounds of tones for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from halo_forge.media.sounds import wav_bytes

RATE = 16_000
WORDS = ("apple", "river", "stone", "cloud", "lamp", "green")
SPECIALS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


def tone(words: str, seconds: float = 0.6) -> np.ndarray:
    """Each word is a tone of its own, one after the other; a sound of RATE samples a second."""
    said = words.split()
    each = int(seconds * RATE / len(said))
    time = np.arange(each) / RATE
    tones = [np.sin(2 * np.pi * (300 + 250 * (WORDS.index(word) if word in WORDS else 7)) * time) for word in said]
    return (0.4 * np.concatenate(tones)).astype(np.float32)


def write_speech(directory: Path, num: int, seconds: float = 0.6) -> Path:
    """`num` different rows {"audio", "text"} with their WAV files; the path of the rows."""
    (directory / "wav").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(num):
        picked = [WORDS[number % 6], WORDS[(number // 6) % 6], WORDS[(number // 36 + 2 * number) % 6]]
        text = " ".join(picked[: 2 + number % 2])
        sound = tone(text, seconds) * np.float32(1 - 0.004 * number)  # no two files are the same
        (directory / "wav" / f"{number}.wav").write_bytes(wav_bytes(sound, RATE))
        rows.append({"audio": f"wav/{number}.wav", "text": text})
    path = directory / "speech.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_whisper(directory: Path, *, seed: int = 0) -> Path:
    """A model directory as transformers writes it: a window of one second, two layers a side."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from halo_forge.models.quiet import quiet_transformers

    directory.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(directory)
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(ids), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=50,
        max_target_positions=32, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"], init_std=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config).eval()
        model.generation_config = GenerationConfig(
            bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=config.decoder_start_token_id,
            suppress_tokens=[ids["<|startofprev|>"]], begin_suppress_tokens=[end], is_multilingual=False,
            no_timestamps_token_id=ids["<|notimestamps|>"], max_length=32,
        )  # fmt: skip
        model.save_pretrained(directory)
        WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(directory)
    path = directory / "preprocessor_config.json"  # as the released models have it, which transformers writes no more
    path.write_text(json.dumps({"processor_class": "WhisperProcessor", **json.loads(path.read_text())}))
    return directory


CHAT_WITH_SOUNDS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{{ '<|audio_bos|><|AUDIO|><|audio_eos|>\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_listener(directory: Path, tokenizer_directory: Path, *, seed: int = 0) -> Path:
    """A Qwen2-Audio as transformers writes it: a window of one second, two layers a side."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    from halo_forge.models.quiet import quiet_transformers

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    added = ["<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": added}, replace_extra_special_tokens=False)
    tokenizer.chat_template = CHAT_WITH_SOUNDS
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 32,
            "max_source_positions": 50, "init_std": 0.1,
        },
        text_config={
            "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "initializer_range": 0.1,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = Qwen2AudioForConditionalGeneration(config).eval()
        for weight in model.parameters():  # transformers draws so small that nothing would depend on a sound
            weight.data = weight.data + 0.08 * torch.randn_like(weight)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(directory)
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1, return_attention_mask=True)
        Qwen2AudioProcessor(extractor, tokenizer, chat_template=CHAT_WITH_SOUNDS).save_pretrained(directory)
    return directory


def _write_tokenizer(directory: Path) -> dict[str, int]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>", normalized=False) for n in range(51)])
    tokenizer.save(str(directory / "tokenizer.json"))
    end = SPECIALS[0]
    described: dict[str, Any] = {
        "tokenizer_class": "WhisperTokenizer", "bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end,
        "additional_special_tokens": list(SPECIALS[1:]), "model_max_length": 32, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return dict(tokenizer.get_vocab())
