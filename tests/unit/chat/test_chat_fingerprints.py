from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from halo_forge.chat import template_sha256, tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def test_hashes_survive_saving_elsewhere_and_use(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    saved = []
    for name in ("one", "two/three"):
        tiny_tokenizer.save_pretrained(tmp_path / name)
        saved.append(AutoTokenizer.from_pretrained(tmp_path / name))
    saved[0](["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert len({tokenizer_sha256(tokenizer) for tokenizer in [tiny_tokenizer, *saved]}) == 1
    assert len({template_sha256(tokenizer) for tokenizer in [tiny_tokenizer, *saved]}) == 1


def test_hashes_tell_changes_apart(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer_sha256(tiny_tokenizer), template_sha256(tiny_tokenizer)
    other_template = copy.deepcopy(tiny_tokenizer)
    other_template.chat_template += " "
    assert tokenizer_sha256(other_template) == before[0]
    assert template_sha256(other_template) != before[1]
    other_stop = copy.deepcopy(tiny_tokenizer)
    other_stop.eos_token = "<|endoftext|>"
    more_tokens = copy.deepcopy(tiny_tokenizer)
    more_tokens.add_tokens(["<new>"])
    hashes = {before[0], tokenizer_sha256(other_stop), tokenizer_sha256(more_tokens)}
    assert len(hashes) == 3
    none = copy.deepcopy(tiny_tokenizer)
    none.chat_template = None
    assert template_sha256(none) != before[1]
