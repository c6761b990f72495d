"""Flags of every command that trains: how many processes on how many nodes, with torchrun's names."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from halo_forge.errors import UsageError
from halo_forge.launch import Launch

PANEL = "Several processes"
FLAGS: dict[str, Any] = {
    "nproc_per_node": Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this node, one for each GPU.", rich_help_panel=PANEL)
    ],
    "nnodes": Annotated[int | None, typer.Option(min=1, help="Nodes that take part.", rich_help_panel=PANEL)],
    "node_rank": Annotated[
        int | None, typer.Option(min=0, help="This node's number; 0 prepares and evaluates.", rich_help_panel=PANEL)
    ],
    "rdzv_endpoint": Annotated[
        str | None,
        typer.Option(help="Where the nodes meet: a port of node 0.", metavar="HOST:PORT", rich_help_panel=PANEL),
    ],
    "max_restarts": Annotated[
        int | None, typer.Option(min=0, help="How often to start again after a worker died.", rich_help_panel=PANEL)
    ],
    "shard": Annotated[
        bool, typer.Option("--shard", help="FSDP2: cut weights and optimizer over the workers.", rich_help_panel=PANEL)
    ],
    "shard_size": Annotated[
        int | None, typer.Option(min=1, help="Workers that share one copy. Default: all.", rich_help_panel=PANEL)
    ],
    "sharded_checkpoints": Annotated[
        bool, typer.Option("--sharded-checkpoints", help="Each worker writes its part.", rich_help_panel=PANEL)
    ],
}


def with_processes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these flags; it gets them as `launch`, a Launch or None where none was typed."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        values = {name: arguments.pop(name) for name in FLAGS}
        typed = {name: value for name, value in values.items() if value is not None and value is not False}
        return command(**arguments, launch=launch_of(typed))

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "launch"]
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind,
            default=False if name in ("shard", "sharded_checkpoints") else None,
        )
        for name, kind in FLAGS.items()
    ]  # fmt: skip
    wrapped.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *flags]}
    return wrapped


def launch_of(typed: dict[str, Any]) -> Launch | None:
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        raise UsageError(
            "this process was started by torchrun, which halo-forge starts itself",
            expected="one process on each node",
            fix="halo-forge sft train --nproc-per-node N (--nnodes, --node-rank and --rdzv-endpoint are torchrun's)",
        )
    if typed.get("nnodes", 1) > 1 and "node_rank" not in typed:
        raise UsageError(
            "which of the nodes is this?",
            where="--nnodes",
            expected="--node-rank, another one on each node",
            fix="--node-rank $SLURM_NODEID under Slurm; docs/cluster.md has the recipes",
        )
    return Launch(**typed) if typed else None
