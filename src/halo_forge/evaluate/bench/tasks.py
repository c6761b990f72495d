"""The benchmarks by name: which tasks of lm-eval they are, and which number speaks for each. No torch, no lm-eval."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """tasks      names in lm-eval
    headline   (task or None for all of them, metric, filter) that `bench.NAME` is
    num_items  of the whole test set
    data       where the rows lie in a local tree: (data set on the Hub, configuration or None for all)
    kind       what is asked of the model
    """

    name: str
    tasks: tuple[str, ...]
    headline: tuple[str | None, str, str]
    num_items: int
    data: tuple[tuple[str, str | None], ...]
    kind: str


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="mmlu", tasks=("mmlu",), headline=(None, "acc", "none"), num_items=14_042,
            data=(("cais/mmlu", None),), kind="57 subjects, four choices each, by likelihood",
        ),
        Benchmark(
            name="humaneval", tasks=("humaneval",), headline=(None, "pass@1", "create_test"), num_items=164,
            data=(("openai/openai_humaneval", "openai_humaneval"),),
            kind="Python functions from their docstring; the code runs in the sandbox",
        ),
        Benchmark(
            name="gsm8k", tasks=("gsm8k",), headline=(None, "exact_match", "strict-match"), num_items=1_319,
            data=(("openai/gsm8k", "main"),), kind="grade school mathematics, five examples shown, answer after ####",
        ),
        Benchmark(
            name="truthfulqa", tasks=("truthfulqa_mc1", "truthfulqa_mc2"), headline=("truthfulqa_mc2", "acc", "none"),
            num_items=790, data=(("truthfulqa/truthful_qa", "multiple_choice"),),
            kind="truths against common falsehoods, by likelihood (mc2: the share of it on what is true)",
        ),
        Benchmark(
            name="hellaswag", tasks=("hellaswag",), headline=(None, "acc_norm", "none"), num_items=10_042,
            data=(("Rowan/hellaswag", "default"),), kind="how a scene goes on, four endings, by likelihood per byte",
        ),
        Benchmark(
            name="ifeval", tasks=("ifeval",), headline=(None, "prompt_level_strict_acc", "none"), num_items=541,
            data=(("google/IFEval", "default"),), kind="instructions whose keeping a program can check",
        ),
    )
}  # fmt: skip


def benchmark_named(name: str) -> Benchmark:
    """A known benchmark, or any other task, group or tag of lm-eval by its own name: its first number speaks for it."""
    known = BENCHMARKS.get(name)
    if known is not None:
        return known
    return Benchmark(name=name, tasks=(name,), headline=(None, "", ""), num_items=0, data=(), kind="a task of lm-eval")
