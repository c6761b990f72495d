"""`python -m halo_forge.publish.reload TASK`: the fresh process behind proof.py and merged.py. JSON in, JSON out.

Axes: N tokens of one conversation, V vocabulary.

Nothing of this process has seen the training: what it knows of the model it reads from the files.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from halo_forge.chat import Conversation, read_conversations, template_sha256, tokenizer_sha256
from halo_forge.config.schema import Config, ModelSection
from halo_forge.domains.media import PROCESSOR_FILES, Media, domain_of_model, open_media, question_of
from halo_forge.errors import HaloForgeError, RowError
from halo_forge.models.generate import Generation, Prompt, generate
from halo_forge.models.load import load_model, model_class
from halo_forge.models.new_tokens import tokenizer_of
from halo_forge.models.precision import choose_device
from halo_forge.models.quantised import to_compute_type
from halo_forge.models.quiet import quiet_transformers
from halo_forge.models.resolve import resolve_model
from halo_forge.models.save import attach_adapter, load_trained, merge_adapter, read_generation_config, stored_dtype
from halo_forge.runs import sha256_tree

BATCH_SIZE = 20
SHOWN_TOKENS = 12


def prove(request: dict[str, Any]) -> dict[str, Any]:
    """The Proof (publish/proof.py) of a staged version, as JSON."""
    staging = Path(request["staging"])
    section = ModelSection.model_validate(request["model"])
    dtype = torch.bfloat16 if request["precision"] == "bfloat16" else torch.float32
    device = choose_device()
    trained_tokenizer, tokenizer = tokenizer_of(section), plain_tokenizer(staging)
    media = open_media(Config.model_validate(request["config"]), trained_tokenizer)
    wrong = _tokenizer_mismatches(staging, tokenizer, request)
    if media is not None:
        wrong += _processor_mismatches(staging, section)
    asked = _golden(request, trained_tokenizer, media)
    expected_prompts = [prompt_of(row, trained_tokenizer, media) for row in asked]
    # A foreign template or tokenizer is found already; it may not even render these rows.
    found_prompts = expected_prompts
    if not wrong and media is None:
        found_prompts = [prompt_of(row, tokenizer, None) for row in asked]
    ends = frozenset(_end_tokens(staging))
    wanted = sorted({token for prompt in expected_prompts for token in prompt.stop_token_ids})
    if not set(wanted) <= ends:
        wrong.append(_mismatch("tokens that end an answer (generation_config.json)", wanted, sorted(ends)))
    for number, (expected, found) in enumerate(zip(expected_prompts, found_prompts, strict=True)):
        if expected.token_ids != found.token_ids:
            wrong.append(_mismatch(f"prompt {number} in tokens", expected.token_ids, found.token_ids))
            break
    report: dict[str, Any] = {
        "status": "measured",
        "num_prompts": len(asked),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "stop_token_ids": wanted,
        "base_model_sha256": _base_sha256(section),
    }
    if not wrong and asked:
        final = Path(request["final_model"])
        answers = [
            _answers(model, tokens, prompts, request["max_new_tokens"], media)
            for model, tokens, prompts in (
                (lambda: _ours(final, request["method"], section, dtype, device), trained_tokenizer, expected_prompts),
                (
                    lambda: _plain(staging, request["method"], section, dtype, device),
                    tokenizer,
                    [Prompt(prompt.token_ids, ends, media=prompt.media) for prompt in found_prompts],
                ),
            )
        ]
        same = [a == b for a, b in zip(*answers, strict=True)]
        report |= {"num_identical": sum(same), "num_tokens": sum(len(a.token_ids) for a in answers[0])}
        wrong += _different_answers(*answers)
        recorded = _recorded(request)
        report["num_recorded"] = sum(row.id in recorded for row in asked)
        wrong += _unlike_recorded(asked, answers[1], recorded, trained_tokenizer)
    if not asked:
        report["note"] = "no row with a question: template and tokenizer were compared, no prompt was asked"
    return report | {"ok": not wrong, "mismatches": wrong}


def plain_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    with quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def _tokenizer_mismatches(
    staging: Path, tokenizer: PreTrainedTokenizerBase, request: dict[str, Any]
) -> list[dict[str, str]]:
    wrong = []
    copies = {"": tokenizer}
    if (staging / "tokenizer").is_dir():
        copies["tokenizer/"] = plain_tokenizer(staging / "tokenizer")
    for place, copy in copies.items():
        if template_sha256(copy) != request["template_sha256"]:
            wrong.append(_mismatch(f"{place}chat template", request["template_sha256"], template_sha256(copy)))
        if tokenizer_sha256(copy) != request["tokenizer_sha256"]:
            wrong.append(_mismatch(f"{place}tokenizer", request["tokenizer_sha256"], tokenizer_sha256(copy)))
    return wrong


def _golden(request: dict[str, Any], tokenizer: PreTrainedTokenizerBase, media: Media | None) -> list[Conversation]:
    """The rows with the smallest content hash that ask something: the same ones in any order of the file."""
    if request["conversations"] is None:
        return []
    rows = sorted(read_conversations(Path(request["conversations"])), key=lambda row: row.id)
    chosen: list[Conversation] = []
    for row in rows:
        if len(chosen) == request["num_prompts"]:
            break
        if row.messages[0].role == "document":
            continue
        try:
            prompt_of(row, tokenizer, media)
        except RowError:
            continue
        chosen.append(row)
    return chosen


def prompt_of(row: Conversation, tokenizer: PreTrainedTokenizerBase, media: Media | None) -> Prompt:
    token_ids, _, stops, seen = question_of(row, tokenizer, media)
    return Prompt(tuple(token_ids), frozenset(stops), media=seen)


def _processor_mismatches(staging: Path, section: ModelSection) -> list[dict[str, str]]:
    """The processor's files of a model that sees or hears: the base's own, byte for byte."""
    base = resolve_model(section.name, section.revision)
    wrong = []
    for name in PROCESSOR_FILES:
        expected, found = ((at / name).read_bytes() if (at / name).is_file() else b"" for at in (base, staging))
        if expected != found:
            wrong.append(_mismatch(name, f"{len(expected)} bytes of the base", f"{len(found)} other bytes"))
    return wrong


def _end_tokens(directory: Path) -> list[int]:
    found = read_generation_config(directory).get("eos_token_id")
    return [int(token) for token in (found if isinstance(found, list) else [found]) if token is not None]


def _answers(
    load: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], limit: int, media: Media | None
) -> list[Generation]:
    model = load()
    return (generate if media is None else media.generate)(
        model, prompts, decode=lambda ids: str(tokenizer.decode(ids)), max_new_tokens=limit, batch_size=BATCH_SIZE
    )


def _ours(directory: Path, method: str, section: ModelSection, dtype: torch.dtype, device: torch.device) -> Any:
    """The model as the evaluation loads it."""
    if method != "qlora":
        return load_trained(directory, dtype=dtype, device=device, attn_implementation="sdpa")
    base = load_model(
        section.name, revision=section.revision, dtype=dtype, device=device, attn_implementation="sdpa", in_4_bits=True
    )
    adapted = attach_adapter(base, directory)
    to_compute_type(adapted, dtype)
    return adapted.eval()


def _plain(directory: Path, method: str, section: ModelSection, dtype: torch.dtype, device: torch.device) -> Any:
    """The model as its card says to load it. Bottlenecks have no other loader than ours; and in 4 bits another way of
    loading rounds otherwise (measured: one golden answer of 20 differed by a token), so that ours is compared."""
    if method in ("adapter", "qlora"):
        return _ours(directory, method, section, dtype, device)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    with quiet_transformers():
        if method == "full":
            return model_class(directory).from_pretrained(directory, **options).to(device).eval()
        from peft import AutoPeftModelForCausalLM, PeftModel

        base = resolve_model(section.name, section.revision)
        if domain_of_model(base) is None:
            return AutoPeftModelForCausalLM.from_pretrained(directory, **options).to(device).eval()
        model = model_class(base).from_pretrained(base, **options)
        return PeftModel.from_pretrained(model, directory).to(device).eval()


def _base_sha256(section: ModelSection) -> str:
    directory = resolve_model(section.name, section.revision)
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    return sha256_tree(directory, names=[*names, "config.json"])


def _mismatch(what: str, expected: object, found: object) -> dict[str, str]:
    return {"what": what, "expected": str(expected)[:400], "found": str(found)[:400]}


def _different_answers(expected: list[Generation], found: list[Generation]) -> list[dict[str, str]]:
    """The first golden prompt that the two answer differently."""
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one != other:
            pairs = zip(one.token_ids, other.token_ids, strict=False)
            shorter = min(len(one.token_ids), len(other.token_ids))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
            what = f"answer to golden prompt {number}, from token {at} on"
            return [_mismatch(what, _words(one, at), _words(other, at))]
    return []


def _recorded(request: dict[str, Any]) -> dict[str, str]:
    """Row id -> the tuned model's answer in the evaluation; empty where it computed in another precision."""
    if request["answers"] is None:
        return {}
    lines = Path(request["answers"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["id"]: row["tuned"]["text"] for row in rows}


def _unlike_recorded(
    asked: list[Conversation], found: list[Generation], recorded: dict[str, str], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """The first answer that is not how the recorded one begins (golden answers are cut short)."""
    for number, (row, answer) in enumerate(zip(asked, found, strict=True)):
        if row.id not in recorded:
            continue
        ids = list(answer.token_ids)
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        whole = recorded[row.id]
        # A cut may fall inside a character, which then decodes as a replacement mark.
        if not (whole == text if answer.stopped else whole.startswith(text.rstrip("\ufffd"))):
            return [_mismatch(f"answer that the evaluation recorded, golden prompt {number}", repr(whole), repr(text))]
    return []


def _words(answer: Generation, at: int) -> str:
    end = "stops" if answer.stopped else "goes on"
    return (
        f"{list(answer.token_ids[at : at + SHOWN_TOKENS])}, {end} after {len(answer.token_ids)}: {answer.text[:120]!r}"
    )


# ---------------------------------------------------------------------------------------------- merging


def merge(request: dict[str, Any]) -> dict[str, Any]:
    """Fold an adapter into its base in float32 and write the result, in the type the base is stored in."""
    source, target = Path(request["source"]), Path(request["target"])
    name, revision = _adapter_base(source)
    merged = merge_adapter(load_model(name, revision=revision, dtype=torch.float32), source)
    dtype = stored_dtype(resolve_model(name, revision))
    with quiet_transformers():
        merged.to(dtype).save_pretrained(target)
        plain_tokenizer(source).save_pretrained(target)
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return {"dtype": str(dtype).removeprefix("torch.")}


def compare_merged(request: dict[str, Any]) -> dict[str, Any]:
    """Adapter and merged model over the same texts: how far apart their next-token distributions are.

    Computed in float32. mean_kl and max_kl in nats, over every position of every text; top1_agreement is the share of
    positions at which both would say the same token.
    """
    source, target = Path(request["source"]), Path(request["target"])
    tokenizer = plain_tokenizer(source)
    device = choose_device()
    texts = [tokenizer(text, return_tensors="pt").input_ids[:, :256] for text in request["texts"]]
    with torch.no_grad(), quiet_transformers():
        adapter = load_trained(source, dtype=torch.float32, device=device, attn_implementation="sdpa")
        expected = [_log_probabilities(adapter, ids.to(device)) for ids in texts]
        del adapter
        model = model_class(target).from_pretrained(target, dtype=torch.float32, trust_remote_code=False)
        model = model.to(device).eval()
        kls, agreements = [], []
        for ids, reference in zip(texts, expected, strict=True):
            found = _log_probabilities(model, ids.to(device))
            kls.append((reference.exp() * (reference - found)).sum(-1))
            agreements.append(reference.argmax(-1) == found.argmax(-1))
    kl, same = torch.cat(kls), torch.cat(agreements)
    return {
        "num_positions": int(kl.numel()),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1_agreement": float(same.float().mean()),
    }


def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[N, V] for ids [1, N]."""
    return torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)


def _adapter_base(directory: Path) -> tuple[str, str | None]:
    config = json.loads((directory / "adapter_config.json").read_bytes())
    return str(config["base_model_name_or_path"]), config.get("revision")


def render(request: dict[str, Any]) -> dict[str, Any]:
    """The chat template's text for [messages, add_generation_prompt] pairs, and the strings that end an answer."""
    directory = Path(request["directory"])
    tokenizer = plain_tokenizer(directory)
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        for messages, ask in request["pairs"]
    ]
    return {"texts": texts, "stops": [str(tokenizer.convert_ids_to_tokens(end)) for end in _end_tokens(directory)]}


TASKS = {"prove": prove, "merge": merge, "compare_merged": compare_merged, "render": render}


def main(arguments: Sequence[str]) -> int:
    try:
        answer = TASKS[arguments[0]](json.load(sys.stdin))
    except HaloForgeError as error:
        print(" ".join(error.render().split()), file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
