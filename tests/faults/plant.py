"""Known bugs of trainers, planted one at a time in a copy of the source: the named test has to turn red.

python tests/faults/plant.py [NAME ...]      prints what was caught and what was missed
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INVARIANTS, FAULTS, UNIT, PARITY = "tests/invariants/", "tests/faults/", "tests/unit/", "tests/parity/"


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str  # below src/halo_forge
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant("N1 mean of means", "train/step.py", "batch.weights / step_weight", "batch.weights / batch.weights.sum()",
           INVARIANTS + "test_steps_are_equal.py::test_the_step_does_not_depend_on_how_it_is_cut"),
    Mutant("N2 a model normalises by itself", "train/loss.py", "Targets(batch.rows, batch.targets, weights), asked",
           "Targets(batch.rows, batch.targets, weights / weights.sum()), asked",
           INVARIANTS + "test_packing_is_exact.py::test_packed_equals_every_document_alone"),
    Mutant("N3 smoothing is not weighed", "models/fast/head.py", "(smoothing * (log_total - mean)",
           "(smoothing * (log_total - mean) / weight[:, 0].clamp(min=1e-6)",
           INVARIANTS + "test_fast_layers_are_exact.py::test_label_smoothing_is_that_of_torch_and_of_transformers"),
    Mutant("N4 packed rows attend to each other", "models/fast/attention.py", "_joined((*before, (start, last)))",
           "_joined((*before, (0, last)))", INVARIANTS + "test_fast_layers_are_exact.py"),
    Mutant("N5 positions run on", "models/fast/prefixes.py",
           "np.concatenate([np.arange(length) for length in lengths])",
           "np.arange(sum(lengths))", INVARIANTS + "test_packing_is_exact.py"),
    Mutant("N6 N7 the stop token is outside the mask", "chat/example.py", "weights[first : last + 1] = weight",
           "weights[first : last] = weight", INVARIANTS + "test_mask_contract.py"),
    Mutant("N8 the mask is all ones", "chat/example.py", "float(self.train_on == \"all\"), dtype", "1.0, dtype",
           INVARIANTS + "test_mask_contract.py"),
    Mutant("N9 a row is lost without a word", "chat/tokens.py", "encode(text, add_special_tokens=False)",
           "encode(text + ' ', add_special_tokens=False)", INVARIANTS + "test_mask_contract.py"),
    Mutant("N10 rows without a target are kept", "chat/example.py",
           "if not (weights > 0).any():\n            raise RowError(\n",
           "if False:\n            raise RowError(\n",
           UNIT + "chat/test_chat_example.py::test_overlong_policies"),
    Mutant("N11 two begin tokens", "chat/example.py", "        self._check_bos(ids)\n", "",
           UNIT + "chat/test_chat_example.py::test_two_begin_tokens_are_refused_and_a_turn_marker_is_not_one"),
    Mutant("N12 what leads to the answer is trained", "chat/example.py", "weights[first : last + 1] = weight",
           "weights[max(1, first - 1) : last + 1] = weight", INVARIANTS + "test_mask_contract.py"),
    Mutant("N13 the model does not know what ends an answer", "models/save.py",
           "ends = [*stop_token_ids, tokenizer.eos_token_id,", "ends = [",
           UNIT + "models/test_model_saving.py::test_generation_stops_where_base_tokenizer_and_run_say"),
    Mutant("N14 merged in bfloat16", "models/save.py", "    if base.dtype != torch.float32:\n",
           "    if False:\n", UNIT + "models/test_model_saving.py::test_merging_wants_a_float32_base"),
    Mutant("N15 weights in bfloat16", "train/methods.py", "half = method != \"full\" and compute", "half = compute",
           INVARIANTS + "test_measured_alike.py::test_small_updates_arrive_under_bfloat16"),
    Mutant("N16 keys of other rows stay", "data/files/arrow_rows.py", "            if holds_tools:\n",
           "            if False:\n", UNIT + "data/test_data_tool_keys.py"),
    Mutant("N17 the rate is one step ahead", "train/loop.py", "session.schedule.rate(step)",
           "session.schedule.rate(step + 1)", INVARIANTS + "test_measured_alike.py"),
    Mutant("N17 an epoch drops its last batch", "train/batches.py", "-(-self.num_examples // self.examples_per_step)",
           "self.num_examples // self.examples_per_step", FAULTS + "test_chains.py"),
    Mutant("N18 validation is a mean over batches", "train/watching/source_losses.py",
           "known[0] + total, known[1] + weight,", "known[0] + total / weight, known[1] + 1,",
           INVARIANTS + "test_measured_alike.py::test_the_validation_loss_is_a_mean_over_tokens"),
    Mutant("every epoch in the same order", "train/batches.py", "default_rng([self.seed, epoch])",
           "default_rng([self.seed, step])", FAULTS + "test_chains.py"),
    Mutant("a resume forgets the optimizer", "train/loop.py",
           "        read_optimizer(found.path, session.model, session.optimizer)\n", "",
           INVARIANTS + "test_resume_is_exact.py::test_interrupted_at_a_step"),
    Mutant("random numbers go on instead of the step's own", "train/loop.py", "    torch.manual_seed(int.from",
           "    (int.from", INVARIANTS + "test_resume_is_exact.py::test_interrupted_at_a_step"),
    Mutant("hashes are not looked at", "train/checkpoint.py", "if sha256_file(path / name) != facts",
           "if None == facts",
           FAULTS + "test_damaged_checkpoints.py"),
    Mutant("saved in place", "train/checkpoint.py", "    staging = run / f\".staging-{PREFIX}{step}-{os.getpid()}\"",
           "    staging = checkpoint_path(run, step)", FAULTS + "test_crash_points.py"),
    Mutant("old checkpoints are deleted before the save", "train/checkpoint.py",
           "    staging.mkdir(parents=True)\n",
           "    [discard(path) for path in list_checkpoints(run)]\n    staging.mkdir(parents=True)\n",
           FAULTS + "test_crash_points.py"),
    Mutant("a pointer is removed and made again", "train/checkpoint.py", "    os.replace(staging, run / name)\n",
           "    (run / name).unlink(missing_ok=True)\n    os.replace(staging, run / name)\n",
           FAULTS + "test_crash_points.py"),
    Mutant("the best checkpoint is not verified", "train/train.py",
           "found = read_checkpoint(", "found = (lambda path, _: type(\"Found\", (), {\"path\": path}))(",
           FAULTS + "test_damaged_checkpoints.py"),
    Mutant("a step that is not finite is applied", "train/step.py",
           "applied = math.isfinite(losses.mean) and math.isfinite(norm)", "applied = True",
           FAULTS + "test_not_finite.py"),
    Mutant("weights that are not finite are saved", "train/loop.py",
           "        refuse_nonfinite_weights(session, state.step)\n", "", FAULTS + "test_not_finite.py"),
    Mutant("validation does not listen", "train/session.py", "                    check()\n",
           "                    pass\n", FAULTS + "test_stop_signals.py"),
    Mutant("a cut off validation is forgotten", "train/loop.py", "        if is_unsettled(session, cursor.state):",
           "        if False:", FAULTS + "test_stop_signals.py"),
    Mutant("gradients of processes are averaged", "train/sharding.py", "set_gradient_divide_factor(1.0)",
           "set_gradient_divide_factor(2.0)", INVARIANTS + "test_processes_are_equal.py"),
    Mutant("a copy keeps its own gradient", "train/step.py", "    dist.all_reduce(flat)\n", "",
           INVARIANTS + "test_processes_are_equal.py"),
    Mutant("a step's size follows the processes", "train/session.py",
           "len(train), compute.examples_per_step or examples_per_step(config, processes.count)",
           "len(train), examples_per_step(config, processes.count)", INVARIANTS + "test_processes_are_equal.py"),
    Mutant("sharded moments are not read", "train/saved_state.py",
           "    _read_parts(directory, {f\"optimizer.{name}\"",
           "    return\n    _read_parts(directory, {f\"optimizer.{name}\"",
           INVARIANTS + "test_processes_are_equal.py"),
    Mutant("a full disk is safetensors' own error", "models/weights.py", "    except SafetensorError as error:",
           "    except ZeroDivisionError as error:",
           FAULTS + "test_disk_faults.py::test_a_full_disk_that_safetensors_tells_of_is_an_error_of_the_disk"),
]  # fmt: skip


def is_caught(mutant: Mutant) -> bool:
    """Whether the test is red in a copy of the source with the bug in it. The checkout stays as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(ROOT / "src", Path(scratch) / "src"))
        file = copy / "halo_forge" / mutant.file
        text = file.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places in {mutant.file}"
        file.write_text(text.replace(mutant.old, mutant.new))
        answer = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not soak", "-p", "no:cacheprovider",
             ROOT / mutant.test],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(copy), str(ROOT / "tests")))},
        )  # fmt: skip
    assert answer.returncode in (0, 1), answer.stdout + answer.stderr
    return answer.returncode == 1


if __name__ == "__main__":
    for chosen in MUTANTS:
        if not sys.argv[1:] or any(word in chosen.name for word in sys.argv[1:]):
            print(f"{'caught' if is_caught(chosen) else 'MISSED'}  {chosen.name}", flush=True)
