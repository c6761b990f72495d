"""How fast evaluation is: likelihoods against lm-eval's `hf` model, answers against `transformers generate`.

    python benchmarks/evaluate.py --tree ../shared/data/benchmarks --pairs 5
    python benchmarks/evaluate.py --only generate --dtype bfloat16 --pairs 5
    python benchmarks/evaluate.py --only few_shot --pairs 5      questions of GSM8K behind four answered ones

Each contestant runs in a fresh process, ours and theirs in turn after one warm-up each, on the same items; reported is
the median of the pairs' ratios with the lowest and highest. What is timed is the work on requests that are there
already: no import, no loading, no building of prompts. Outputs are compared first: a speed at other numbers is none.
Results: benchmarks/results/evaluate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LIKELIHOOD_TASKS = {"hellaswag": 24, "truthfulqa_mc1": 12, "mmlu_abstract_algebra": 24}
THEIR_BATCH = {"hellaswag": 16, "truthfulqa_mc1": 16, "mmlu_abstract_algebra": 8}
"""Of its `hf` model. Not searched beyond this: batches of equal lengths this large keep its padding small."""
NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS, BATCH, NUM_SHOTS = 16, 100, 64, 8, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=Path("../shared/data/benchmarks"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", default=None, help="generate, few_shot, or a task of likelihoods")
    parser.add_argument("--contestant", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(contest(options)))
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for workload in [options.only] if options.only else [*GENERATION, *LIKELIHOOD_TASKS]:
        for result in race(workload, options):  # kept after every pair
            known[f"{workload} {options.dtype} {options.threads} threads"] = result
            RESULTS.write_text(json.dumps(known, indent=2) + "\n")


def race(workload: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    pairs: list[dict[str, float]] = []
    for number in range(options.pairs):
        ours, theirs = (start(workload, who, options) for who in ("ours", "theirs"))
        pairs.append(
            {"ours_s": ours["time_s"], "theirs_s": theirs["time_s"], "ratio": theirs["time_s"] / ours["time_s"]}
        )
        agreement = compare(ours["output"], theirs["output"])
        print(f"{workload} pair {number + 1}: {pairs[-1]} {agreement}", file=sys.stderr)
        ratios = [pair["ratio"] for pair in pairs]
        yield {
            "median_ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "pairs": pairs,
            "agreement": agreement, "machine": ours["machine"],
        }  # fmt: skip


def start(workload: str, who: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--contestant", who, "--only", workload, "--dtype", options.dtype,
        "--threads", str(options.threads), "--tree", str(options.tree),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """Equal answers, or the largest difference of a log-likelihood in nats and whether choices come out alike."""
    if isinstance(ours[0], str):
        return {"equal_answers": sum(a == b for a, b in zip(ours, theirs, strict=True)), "of": len(ours)}
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "max_difference_nats": max(abs(a[0] - b[0]) for a, b in pairs),
        "same_greedy": all(a[1] == b[1] for a, b in pairs), "of": len(ours),
    }  # fmt: skip


def contest(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from halo_forge.models.load import load_model, load_tokenizer

    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    model = load_model(MODEL, dtype=getattr(torch, options.dtype), attn_implementation="sdpa").eval()
    tokenizer = load_tokenizer(MODEL)
    run = generation if options.only in GENERATION else likelihoods
    time_s, output = run(model, tokenizer, options)
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    return {"time_s": time_s, "output": output, "machine": machine}


def generation(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[float, list[str]]:
    """Answers of one length: no early end helps anybody."""
    import torch

    from halo_forge.models.generate import Prompt, generate

    prompts = [Prompt(ids, frozenset()) for ids in GENERATION[str(options.only)](tokenizer, options)]
    model.generation_config.eos_token_id = None

    def ours(count: int, new_tokens: int) -> list[str]:
        found = generate(model, prompts[:count], decode=str, max_new_tokens=new_tokens, batch_size=BATCH)
        return [answer.text for answer in found]

    def theirs(count: int, new_tokens: int) -> list[str]:
        found = {}
        by_length = sorted(range(count), key=lambda index: -len(prompts[index].token_ids))
        for start in range(0, count, BATCH):
            asked = by_length[start : start + BATCH]
            rows = [torch.tensor(prompts[index].token_ids) for index in asked]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
            ones = [torch.ones_like(row) for row in rows]
            mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side="left")
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
                )
            found |= {index: str(row) for index, row in zip(asked, output[:, ids.shape[1] :].tolist(), strict=True)}
        return [found[index] for index in range(count)]

    run = ours if options.contestant == "ours" else theirs
    run(BATCH, 4)
    began = time.perf_counter()
    output = run(NUM_PROMPTS, NEW_TOKENS)
    return time.perf_counter() - began, output


def random_prompts(tokenizer: Any, options: argparse.Namespace) -> list[tuple[int, ...]]:
    """Of one length, and nothing in common: nobody pads, nobody shares."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (NUM_PROMPTS, PROMPT_TOKENS), generator=generator)
    return [tuple(row.tolist()) for row in ids]


def few_shot_prompts(tokenizer: Any, options: argparse.Namespace) -> list[tuple[int, ...]]:
    """Questions behind the same four answered ones, as lm-eval's GSM8K asks them."""
    with open(options.tree.parent / "gsm8k_train.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(NUM_SHOTS + NUM_PROMPTS), strict=False)]
    shots = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows[:NUM_SHOTS])
    texts = [f"{shots}Question: {row['question']}\nAnswer:" for row in rows[NUM_SHOTS:]]
    return [tuple(tokenizer(text)["input_ids"]) for text in texts]


GENERATION = {"generate": random_prompts, "few_shot": few_shot_prompts}


def likelihoods(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[float, list[Any]]:
    import tempfile

    from lm_eval.models.huggingface import HFLM

    from halo_forge.evaluate.answer_cache import AnswerCache
    from halo_forge.evaluate.bench import engine
    from halo_forge.evaluate.bench.own_model import OwnModel

    with engine.quiet():
        loaded, _ = engine.load_tasks((options.only,), options.tree)
        task = loaded["tasks"][options.only]
        task.set_config(key="num_fewshot", value=5 if options.only.startswith("mmlu") else 0)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests(limit=LIKELIHOOD_TASKS[options.only])
        requests = task.instances
        if options.contestant == "ours":
            cache = AnswerCache(Path(tempfile.mkdtemp()) / "cache.jsonl")
            asked: Any = OwnModel(
                model, tokenizer, cache, batch_size=BATCH, progress=lambda *_: None, check=lambda: None
            )
        else:
            asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=THEIR_BATCH[options.only])
        asked.loglikelihood(requests[-1:], disable_tqdm=True)
        began = time.perf_counter()
        output = asked.loglikelihood(requests, disable_tqdm=True)
        return time.perf_counter() - began, [list(pair) for pair in output]


if __name__ == "__main__":
    main()
