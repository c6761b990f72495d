"""`halo-forge diagnose`: what is wrong with a run, finished or still training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halo_forge.cli.release_commands import RunArgument
from halo_forge.cli.running import JsonOption, print_json, printable, told_in_words
from halo_forge.errors import UsageError

if TYPE_CHECKING:
    from halo_forge.diagnosis import Diagnosis, TrainingFinding


@told_in_words
def diagnose_command(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what is wrong with a training run and what to do about it. Works while the run is still training."""
    from halo_forge.diagnosis import diagnose_run

    try:
        diagnosis = diagnose_run(run)
    except FileNotFoundError:
        raise UsageError(
            "nothing has been trained here",
            where=str(run),
            expected="metrics.jsonl in it",
            fix="give the run directory (output.dir) of a run that has begun to train",
        ) from None
    if as_json:
        print_json(
            {
                "run": run,
                "last_step": diagnosis.last_step,
                "num_steps": diagnosis.facts.num_steps,
                "is_finished": diagnosis.facts.is_finished,
                "findings": [finding.to_dict() for finding in diagnosis.findings],
                "past": [finding.to_dict() for finding in diagnosis.past],
            }
        )
    else:
        print(printable(in_words(diagnosis)))


def in_words(diagnosis: Diagnosis) -> str:
    planned, num = diagnosis.facts.num_steps, len(diagnosis.findings)
    of = "" if planned is None else f" of {planned}"
    state = "finished" if diagnosis.facts.is_finished else "not finished"
    found = "no findings" if not num else "1 finding" if num == 1 else f"{num} findings"
    parts = [f"step {diagnosis.last_step}{of}, {state}: {found}"]
    parts += [_words(finding) for finding in diagnosis.findings]
    if diagnosis.past:
        parts.append("Told while it trained, and no longer so over the whole run:")
        parts += [_words(finding) for finding in diagnosis.past]
    return "\n\n".join(parts)


def _words(finding: TrainingFinding) -> str:
    steps = f"steps {finding.first_step} to {finding.last_step}"
    if finding.first_step == finding.last_step:
        steps = f"step {finding.first_step}"
    return (
        f"{finding.severity}: {finding.title} ({finding.code}, {steps})\n"
        f"  {finding.evidence}\n  next: {finding.next_action}"
    )
