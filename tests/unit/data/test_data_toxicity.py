"""The lexical toxicity score and the hook for a model."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from halo_forge.data.rules.toxicity import model_scores
from halo_forge.errors import ModelNotFound
from halo_forge.texts.toxicity import TOXIC_SCORE, lexical_toxicity, lexicon

REFERENCE = {
    "you are a stupid idiot": 1.0000,
    "I like apples": 0.0174,
    "what the hell": 0.9914,
    "He used 3 balls of wool.": 0.8525,
    "shut up, you moron": 0.9999,
}
"""What alt-profanity-check 1.9.1 gives with scikit-learn, from which the weights come."""


@pytest.mark.parametrize("text", REFERENCE)
def test_the_score_is_that_of_the_model_it_was_exported_from(text: str) -> None:
    assert lexical_toxicity(text) == pytest.approx(REFERENCE[text], abs=0.02)


def test_insults_score_high_and_ordinary_text_low() -> None:
    assert lexical_toxicity("You pathetic piece of shit, shut up!") > TOXIC_SCORE
    for text in ("", "1234", "日本語", "Natalia sold 24 clips in May.", "Please close the door, thank you."):
        assert lexical_toxicity(text) < 0.5, text


def test_case_and_punctuation_do_not_matter() -> None:
    assert lexical_toxicity("YOU IDIOT!!!") == lexical_toxicity("you, idiot")


def test_strong_words_are_few_and_score_by_themselves() -> None:
    strong = lexicon().strong
    assert 50 < len(strong) < 500
    assert b"idiot" in strong
    assert b"balls" not in strong
    assert all(lexical_toxicity(word.decode()) > 0.9 for word in strong)


def test_scoring_is_linear_and_never_overflows() -> None:
    started = time.process_time()
    score = lexical_toxicity("idiot " * 200_000)
    assert math.isfinite(score)
    assert score > 0.99
    assert lexical_toxicity("thanks appreciate " * 50_000) < 0.01
    assert time.process_time() - started < 5.0


# ------------------------------------------------------------------------------------------ the model hook


def _tiny_classifier(directory: Path, labels: list[str], problem: str | None = None) -> Path:
    """A two-token-deep BERT whose logits depend on whether `bad` stands in the text, built here and saved."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "bad", "good", "text"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=18, id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)}, problem_type=problem,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1.0)
        model.bert.embeddings.word_embeddings.weight[2] = torch.tensor([1.0, -1.0] * 4)  # the first token is pooled
        model.bert.pooler.dense.weight.copy_(torch.eye(8))
        model.classifier.weight[-1, 0] = 8.0
        model.classifier.bias[-1] = -3.0
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def test_a_model_scores_texts_by_its_toxic_label(tmp_path: Path) -> None:
    directory = _tiny_classifier(tmp_path / "model", ["non-toxic", "toxic"])
    scores = model_scores(["bad text", "good text", "bad", *["good"] * 30], str(directory))
    assert len(scores) == 33
    assert scores[0] > 0.8 > 0.2 > scores[1]
    assert scores[2] == pytest.approx(scores[0], abs=1e-5)
    assert all(score == pytest.approx(scores[1], abs=1e-5) for score in scores[3:])
    assert model_scores(["good " * 500], str(directory))[0] < 0.2  # longer than the model: cut
    assert model_scores([], str(directory)) == []


def test_independent_labels_give_the_largest_toxic_one(tmp_path: Path) -> None:
    directory = _tiny_classifier(tmp_path / "model", ["obscene", "threat"], "multi_label_classification")
    bad, good = model_scores(["bad", "good"], str(directory))
    assert bad > 0.8
    assert good == pytest.approx(0.5, abs=1e-5)  # the zeroed `obscene` head says 0.5 for everything


def test_a_model_whose_labels_say_nothing_is_refused(tmp_path: Path) -> None:
    directory = _tiny_classifier(tmp_path / "model", ["LABEL_0", "LABEL_1"])
    with pytest.raises(ModelNotFound, match="LABEL_0"):
        model_scores(["text"], str(directory))


def test_a_directory_without_a_classifier_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelNotFound):
        model_scores(["text"], str(tmp_path))
