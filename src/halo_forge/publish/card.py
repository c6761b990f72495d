"""The model card of one version: Markdown written from the records alone. Nothing in it was typed by hand.

Everything that came from outside (names, reasons) is escaped, so that it stays text in any Markdown viewer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from halo_forge.artifacts import (
    LORA_METHODS,
    EvalReport,
    GateDecision,
    Measurement,
    Method,
    PreparedData,
    TrainedModel,
)
from halo_forge.config.method_words import method_words
from halo_forge.config.schema import Config, DataSection
from halo_forge.domains.media import domain_of_model
from halo_forge.models.inspection import AUDIO_LANGUAGE_MODELS, read_json_object
from halo_forge.models.resolve import resolve_model
from halo_forge.publish.weights import WeightFacts
from halo_forge.texts.final_answers import INSTRUCTIONS

# Licences of base models that we know from their own repositories; any other is said to be unknown.
KNOWN_LICENCES = {
    "smollm2-135m-instruct": "Apache-2.0",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Apache-2.0",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "Apache-2.0",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "Apache-2.0",
}
MASK_POLICY = {
    "assistant": "every assistant turn, with the token that ends it; prompts are not trained",
    "last_assistant": "the last assistant turn of each conversation; everything before it is context",
    "all": "every token after the first, prompts included",
}


KINDS: dict[Method, str] = {
    "lora": "LoRA adapter for",
    "dora": "DoRA adapter for",
    "qlora": "QLoRA adapter for",
    "adapter": "Bottleneck adapters for",
    "full": "Full fine-tune of",
}
# library -> (imports, lines that load the model)
LOADING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "peft": (
        ("from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"),
        ("model = AutoPeftModelForCausalLM.from_pretrained(path)",),
    ),
    "transformers": (
        ("from transformers import AutoModelForCausalLM, AutoTokenizer",),
        ("model = AutoModelForCausalLM.from_pretrained(path)",),
    ),
    "halo-forge": (
        ("import torch", "from halo_forge.models import load_trained", "from transformers import AutoTokenizer"),
        ("model = load_trained(path, dtype=torch.float32)",),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    name: str
    version: int
    forced: bool
    config: Config
    trained: TrainedModel
    report: EvalReport
    decision: GateDecision
    prepared: PreparedData
    weights: WeightFacts


def render_card(facts: CardFacts) -> str:
    parts = [_front_matter(facts), _head(facts), _loading(facts), _data(facts), _training(facts)]
    parts += [_evaluation(facts), _gate(facts), _limits(facts)]
    return "\n\n".join(parts) + "\n"


def escape(text: object) -> str:
    """Text that Markdown shows as it is: on one line, no markup, no HTML, no table cell of its own."""
    line = re.sub(r"\s+", " ", str(text)).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", line)


def _front_matter(facts: CardFacts) -> str:
    method = facts.trained.method
    fields = {
        "base_model": facts.trained.model_name,
        "library_name": _library(method),
        "license": (_licence(facts.trained.model_name) or "other").lower(),
        "pipeline_tag": "text-generation",
        "tags": ["halo-forge", "sft", method],
        "model-index": [{"name": facts.name, "results": _results(facts)}],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip()}\n---"


def _results(facts: CardFacts) -> list[dict[str, Any]]:
    """What the Hub reads as evaluation results: the tuned model's measured metrics, with their intervals."""
    report = facts.report
    metrics = [
        {"type": row.metric, "name": _metric_words(row.tuned, report.confidence), "value": row.tuned.value}
        for row in report.overall
        if row.tuned.status == "measured" and row.tuned.value is not None
    ]
    dataset = {"type": "holdout", "name": f"holdout of this run, sha256 {report.holdout_sha256[:16]}"}
    task = {"type": "text-generation"}
    return [{"task": task, "dataset": dataset, "metrics": metrics}] if metrics else []


def _metric_words(measurement: Measurement, confidence: float) -> str:
    words = f"{measurement.metric}, n = {measurement.n}"
    if measurement.low is None or measurement.high is None:
        return words
    return f"{words}, {confidence:.0%} interval {measurement.low:.4g} to {measurement.high:.4g}"


def _library(method: Method) -> str:
    if method in LORA_METHODS:
        return "peft"
    return "halo-forge" if method == "adapter" else "transformers"


def _licence(model_name: str) -> str | None:
    return KNOWN_LICENCES.get(model_name)


def _head(facts: CardFacts) -> str:
    trained = facts.trained
    kind = KINDS[trained.method]
    lines = [
        f"# {escape(facts.name)} v{facts.version}",
        f"{kind} **{escape(trained.model_name)}**. "
        f"Quality gate: **{facts.decision.verdict}**. Weights sha256 `{facts.decision.weights_sha256[:16]}`.",
    ]
    if trained.method == "adapter":
        lines.append(
            "Bottleneck adapters cannot be merged into the base model: their non-linearity stands between its weights. "
            "This version is the adapter alone, and halo-forge is needed to load it."
        )
    if trained.method == "qlora":
        lines.append(
            "Trained and evaluated over the base model in 4 bits (nf4), which is how it is loaded below. It may be "
            "merged into the unquantised base; how that answers was not measured here."
        )
    if facts.forced:
        lines.append(
            f"> **Published by force.** The quality gate did not pass: its verdict is {facts.decision.verdict}. "
            "Do not use this version where the gate's rules matter."
        )
    return "\n\n".join(lines)


MEDIA_CLASSES: dict[str, str] = {"image": "AutoModelForImageTextToText", "audio": "AutoModelForSpeechSeq2Seq"}
LISTENING_CLASS = "AutoModelForMultimodalLM"
"""Of audio language models."""


def _media_class(facts: CardFacts) -> str | None:
    """The class of transformers that loads a base that sees or hears; None for one of text."""
    if "media" not in facts.prepared.provenance.inputs:
        return None
    directory = resolve_model(facts.config.model.name, facts.config.model.revision, weights=False)
    if read_json_object(directory / "config.json").get("model_type") in AUDIO_LANGUAGE_MODELS:
        return LISTENING_CLASS
    domain = domain_of_model(directory)
    return MEDIA_CLASSES.get(domain.reads) if domain is not None else None


def _loading_with_media(facts: CardFacts, model_class: str) -> str:
    """How a model that sees or hears is loaded; what it is asked with is for its processor's own page to say."""
    adapted = facts.trained.method != "full"
    code = [
        *(["from peft import PeftModel"] if adapted else []),
        f"from transformers import {model_class}, AutoProcessor",
        "",
        'path = "."  # the directory of this file',
        *(
            [
                f"model = {model_class}.from_pretrained({json.dumps(facts.trained.model_name)})",
                "model = PeftModel.from_pretrained(model, path)",
            ]
            if adapted
            else [f"model = {model_class}.from_pretrained(path)"]
        ),
        "processor = AutoProcessor.from_pretrained(path)",
    ]
    return "## Load it\n\n```python\n" + "\n".join(code) + "\n```"


def _loading(facts: CardFacts) -> str:
    model_class = _media_class(facts)
    if model_class is not None and facts.trained.method != "adapter":
        return _loading_with_media(facts, model_class)
    imports, load = LOADING[_library(facts.trained.method)]
    if facts.trained.method == "qlora":
        imports = (imports[0], "from transformers import AutoTokenizer, BitsAndBytesConfig")
        load = (
            "base = BitsAndBytesConfig(",
            '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
            ")",
            "model = AutoPeftModelForCausalLM.from_pretrained(path, quantization_config=base)",
        )
    code = [
        *imports,
        "",
        'path = "."  # the directory of this file',
        *load,
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        'messages = [{"role": "user", "content": "..."}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "answer = model.generate(**inputs, max_new_tokens=256)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "## Load it\n\n```python\n" + "\n".join(code) + "\n```"


def _data(facts: CardFacts) -> str:
    prepared = facts.prepared
    lines = ["## Data", "", "| source | format | read | kept | fixed | dropped |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {escape(Path(source.path).name)} | {escape(source.format)} | {source.read:,} | {source.kept:,} "
        f"| {source.fixed:,} | {source.dropped:,} |"
        for source in prepared.sources
    ]
    lines += ["", "| split | rows | tokens | trained or scored tokens |", "|---|--:|--:|--:|"]
    lines += [
        f"| {escape(name)} | {split.rows:,} | {split.tokens:,} | {split.supervised_tokens:,} |"
        for name, split in prepared.splits.items()
    ]
    if prepared.reasons:
        reasons = ", ".join(f"{escape(code)} {count:,}" for code, count in sorted(prepared.reasons.items()))
        lines += ["", f"Rows dropped or fixed, by reason: {reasons}."]
    chosen = facts.config.data.train_on
    policy = MASK_POLICY[chosen] if isinstance(chosen, str) else f"the turns of the {' and the '.join(chosen)}"
    lines += ["", f"Trained tokens: {policy}. Longest example: {prepared.max_seq_length:,} tokens."]
    lines += prompt_words(facts.config.data)
    return "\n".join(lines)


def prompt_words(data: DataSection) -> list[str]:
    """What a question must carry to be asked as in training."""
    if data.final_answer == "keep" or not data.answer_instruction:
        return []
    return ["", f"Questions that want a final answer end with: `{INSTRUCTIONS[data.final_answer]}`"]


def _training(facts: CardFacts) -> str:
    trained, config = facts.trained, facts.config
    share = trained.num_trainable_parameters / max(trained.num_parameters, 1)
    rows = {
        "method": method_words(config, trained.method),
        "trained parameters": f"{trained.num_trainable_parameters:,} of {trained.num_parameters:,} ({share:.2%})",
        "peak learning rate": f"{config.learning_rate:g}, {config.training.lr_scheduler}",
        "steps, epochs": f"{trained.num_steps:,}, {trained.num_epochs:g} ({trained.stop_reason}); "
        f"these weights are of step {trained.final_step:,}",
        "tokens, trained tokens": f"{trained.num_tokens:,}, {trained.num_supervised_tokens:,}",
        "training loss": f"{trained.train_loss:.4f} nats per trained token",
        "validation loss": _loss(trained.validation_loss) + f", best {_loss(trained.best_validation_loss)}",
        "time, speed": f"{trained.train_time_s:,.0f} s, {trained.tokens_per_s:,.0f} tokens/s",
        "device, precision": f"{escape(trained.device)}, {trained.precision}",
        "published weights": f"{facts.weights.num_tensors:,} tensors, {facts.weights.num_bytes:,} bytes",
    }
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _evaluation(facts: CardFacts) -> str:
    report = facts.report
    lines = [
        "## Base against tuned",
        "",
        f"The same {report.num_items:,} held-out rows for both, {report.num_scored:,} of them answered with the same "
        f"decoding; `general_` is about the general texts that come with halo-forge. Intervals at "
        f"{report.confidence:.0%} confidence.",
        "",
        "| metric | base | tuned | change | n |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {escape(row.metric)} | {_number(row.base)} | {_number(row.tuned)} | {_number(row.delta, sign=True)} "
        f"| {row.tuned.n:,} |"
        for row in report.overall
    ]
    return "\n".join(lines)


def _number(measurement: Measurement, *, sign: bool = False) -> str:
    if measurement.status != "measured" or measurement.value is None:
        return measurement.status.replace("_", " ")
    form = "+.4g" if sign else ".4g"
    text = format(measurement.value, form)
    if measurement.low is None or measurement.high is None:
        return text
    return f"{text} ({format(measurement.low, form)} to {format(measurement.high, form)})"


def _gate(facts: CardFacts) -> str:
    lines = ["## Quality gate", "", f"Verdict: **{facts.decision.verdict}**", ""]
    lines += [
        f"- **{rule.verdict}** {escape(rule.rule)}: {escape(rule.reason)} ({escape(rule.evidence)})"
        for rule in facts.decision.rules
    ]
    return "\n".join(lines)


def _limits(facts: CardFacts) -> str:
    base = _licence(facts.trained.model_name) or "unknown; read its own model card"
    return "\n".join(
        [
            "## Licence and limits",
            "",
            f"- Licence of the base model: {base}.",
            "- Licence of the training data: unknown to the tool; whoever publishes this model answers for it.",
            "- Measured on this run's holdout only. What is not in the table above was not measured.",
            "- `manifest.json` holds the sha256 of every file; `halo-forge models verify "
            f"{facts.name}@{facts.version}` checks them.",
        ]
    )
