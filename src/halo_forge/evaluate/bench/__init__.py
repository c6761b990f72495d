"""Published benchmarks: lm-eval's tasks and rules, our own scoring and generation, base and tuned on the same items.

tasks.py    the benchmarks by name, and which number speaks for each
engine.py   lm-eval: its tasks from a local tree, run without the traps it sets offline
own_model.py  a loaded model as lm-eval asks it: likelihoods and answers, each kept as soon as it is known
outcome.py  what a task gave: scores per item, or why it broke
compare.py  outcomes -> measurements and comparisons that gate rules name `bench.gsm8k`
run.py      all of it, resumable                   mirror.py  the local tree
"""
