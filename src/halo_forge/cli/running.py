"""Shared by the commands: errors in words, results as text or JSON, options that several commands take."""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from halo_forge.errors import ExitCode, HaloForgeError, storage_error

VERDICT_EXIT = {"PASS": ExitCode.OK, "FAIL": ExitCode.GATE_FAILED, "INCONCLUSIVE": ExitCode.EVIDENCE_INSUFFICIENT}

Command = TypeVar("Command", bound=Callable[..., Any])

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="YAML configuration.", metavar="FILE")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set any configuration key: --set training.learning_rate=1e-4.", metavar="KEY=VALUE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start over in the output directory instead of going on there.")
]
ResumeOption = Annotated[
    Path | None, typer.Option(help="Checkpoint of this run to go back to. Default: the newest.", metavar="CHECKPOINT")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, prepare the data, train nothing.")]


def told_in_words(command: Command) -> Command:
    """Turn errors into one message on stderr and an exit code; HALO_FORGE_DEBUG=1 shows tracebacks."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        debugging = os.environ.get("HALO_FORGE_DEBUG") == "1"
        try:
            return command(*args, **kwargs)
        except HaloForgeError as error:
            if debugging:
                traceback.print_exc()
            complain(error)
            raise typer.Exit(int(error.exit_code)) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
        except MemoryError:
            print("error: the machine's memory is spent", file=sys.stderr)
            raise typer.Exit(int(ExitCode.OUT_OF_MEMORY)) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(int(ExitCode.RUN_FAILED)) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debugging:
                raise
            told = storage_error(error) if isinstance(error, OSError) else None
            if told is not None:
                complain(told)
                raise typer.Exit(int(told.exit_code)) from None
            print(
                f"error: {type(error).__name__}: {error}\n"
                "  this is a fault of halo-forge, not of yours\n"
                "  try: the same command with HALO_FORGE_DEBUG=1 shows where, for a report",
                file=sys.stderr,
            )
            raise typer.Exit(int(ExitCode.RUN_FAILED)) from None

    return wrapped  # type: ignore[return-value]


@contextmanager
def importing() -> Iterator[None]:
    """For the imports that bring torch: no garbage is looked for inside, nor later among what they made, which stays.
    Searching it took 0.3 s each time, a second of seven while importing and another one until the first step
    (measured)."""
    bring_torch = "torch" not in sys.modules
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if bring_torch:
            gc.freeze()
        if was_enabled:
            gc.enable()


def complain(error: HaloForgeError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    label = "stopped" if error.exit_code == ExitCode.INTERRUPTED else "error"
    console.print(Text.assemble((f"{label}: ", "bold red"), printable(error.render())))


def printable(text: str) -> str:
    """Without control characters: text from data files must not drive the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """One JSON document on stdout; records and paths included."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON output")  # its repr would help nobody


def given(flags: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[Any, str]]:
    """Options the user typed, as load_config's `flags`: {dotted key: (value, flag name)}.

    flags  flag name -> (dotted key, value); None = not typed, so that no default ever overrides a file
    """
    return {key: (value, name) for name, (key, value) in flags.items() if value is not None}
