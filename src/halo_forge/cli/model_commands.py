"""`halo-forge models ...`: published versions, what they are called, and what happened to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halo_forge.cli.folding import folded, reading_width
from halo_forge.cli.running import JsonOption, print_json, printable, told_in_words
from halo_forge.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from halo_forge.publish import VerifyResult

DEFAULT_REGISTRY = Path("models/registry")
RegistryOption = Annotated[Path, typer.Option("--registry", help="Registry directory.", metavar="DIRECTORY")]
VersionArgument = Annotated[
    str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS; without one the released version.", metavar="NAME")
]
NameArgument = Annotated[str, typer.Argument(help="Name of a model.", metavar="NAME")]


@told_in_words
def list_command(registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """List published versions and what they are called."""
    from halo_forge.publish import list_releases
    from halo_forge.publish.history import read_aliases

    releases = list_releases(registry)
    aliases = {release.name: read_aliases(registry / release.name) for release in releases}
    names = [sorted(a for a, v in aliases[release.name].items() if v == release.version) for release in releases]
    if as_json:
        rows = zip(releases, names, strict=True)
        print_json([release.model_dump(mode="json") | {"aliases": called} for release, called in rows])
        return
    if not releases:
        print(f"no versions in {registry}")
    for release, called in zip(releases, names, strict=True):
        marks = ["forced"] * release.forced + called
        line = f"{release.name:<28} v{release.version:<4} {release.verdict:<13} {release.provenance.created_at}"
        print("  ".join([line, ", ".join(marks)]).rstrip())


@told_in_words
def show_command(
    name: VersionArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False
) -> None:
    """Print what a published version was made from and how it was judged."""
    from halo_forge.publish import name_and_version, show_release
    from halo_forge.publish.history import read_aliases

    release = show_release(registry, *name_and_version(name))
    aliases = sorted(a for a, v in read_aliases(registry / release.name).items() if v == release.version)
    if as_json:
        print_json(release.model_dump(mode="json") | {"aliases": aliases})
        return
    print(f"{release.name} v{release.version}  {release.verdict}{'  (forced)' if release.forced else ''}")
    if aliases:
        print(f"called    {', '.join(aliases)}")
    print(f"path      {release.path}\nmanifest  {release.manifest_sha256}\ncreated   {release.provenance.created_at}")
    print(f"code      {release.provenance.code_version}")
    for key, value in release.provenance.inputs.items():
        print(f"{key:<32} {value}")


@told_in_words
def verify_command(
    name: Annotated[str | None, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS; without one, all.")] = None,
    key: Annotated[Path | None, typer.Option(help="Public key that must have signed it.", metavar="FILE")] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Hash every file of published versions again. Exit code 1 if anything differs."""
    from halo_forge.publish import list_releases, name_and_version, verify_release

    if name is not None:
        results = [verify_release(registry, *name_and_version(name))]
    else:
        results = [verify_release(registry, release.name, release.version) for release in list_releases(registry)]
    if key is not None:
        results = [_with_signature(registry, result, key) for result in results]
    if as_json:
        print_json(results[0] if name is not None else results)
    for result in () if as_json else results:
        label = "" if name is not None else f"{result.name} v{result.version}: "
        print(label + ("verified" if result.ok else "\n".join(printable(problem) for problem in result.problems)))
    if not results and not as_json:
        print(f"no versions in {registry}")
    if not all(result.ok for result in results):
        raise typer.Exit(int(ExitCode.RUN_FAILED))


def _with_signature(registry: Path, result: VerifyResult, key: Path) -> VerifyResult:
    from halo_forge.publish.sign import check_signature

    found = check_signature(registry, result.name, result.version, key)
    broken = (*result.broken, *([found.problem] if not found.ok else []))
    return result.model_copy(update={"broken": broken, "ok": result.ok and found.ok})


@told_in_words
def sign_command(
    name: VersionArgument,
    key: Annotated[Path, typer.Option(help="Private key, PEM, curve P-256, P-384 or P-521.", metavar="FILE")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Sign every byte of a version with a key of your own, offline (package model-signing, extra `sign`)."""
    from halo_forge.publish import name_and_version
    from halo_forge.publish.sign import sign_release

    signature = sign_release(registry, *name_and_version(name), key)
    print_json(signature) if as_json else print(f"signed {signature.name} v{signature.version}: {signature.path}")


@told_in_words
def alias_command(
    name: VersionArgument,
    alias: Annotated[str, typer.Argument(help="What to call this version: released, staging, ...", metavar="ALIAS")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Let an alias name a version."""
    from halo_forge.publish import name_and_version, set_alias

    line = set_alias(registry, *name_and_version(name), alias)
    print_json(line) if as_json else print(f"{alias} is v{line.version}")


@told_in_words
def rollback_command(
    name: NameArgument,
    to: Annotated[
        str | None, typer.Option(help="Version to go back to. Default: the one before.", metavar="vN")
    ] = None,
    alias: Annotated[str, typer.Option(help="The alias that goes back.")] = "released",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Let `released` name the version that it named before. Nothing is copied or removed."""
    from halo_forge.publish import name_and_version, roll_back

    if name_and_version(name)[1] is not None:
        raise UsageError("the version to go back to is given with --to", where=name, fix="models rollback NAME --to vN")
    line = roll_back(registry, name, None if to is None else name_and_version(f"{name}@{to}")[1], alias)
    before = line.aliases[alias][0]
    print_json(line) if as_json else print(f"{alias} is v{line.version}, was v{before}")


@told_in_words
def log_command(name: NameArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """Print what happened to a model's versions: when, by whom, and what. Exit code 1 where the log was changed."""
    from halo_forge.publish.history import read_log
    from halo_forge.publish.registry import version_directory

    log = read_log(version_directory(registry, name, None).parent)
    if as_json:
        print_json({"lines": [line.model_dump(mode="json") for line in log.lines], "problems": log.problems})
    for line in () if as_json else log.lines:
        moves = [f"{a} {_version(old)} -> {_version(new)}" for a, (old, new) in line.aliases.items()]
        what = ", ".join(part for part in (f"v{line.version}", *moves, line.note) if part)
        print(printable(f"{line.at}  {line.who:<24} {line.action:<9} {what}"))
    for problem in () if as_json else log.problems:
        print(problem)
    if log.problems:
        raise typer.Exit(int(ExitCode.RUN_FAILED))


@told_in_words
def diff_command(
    words: Annotated[
        list[str], typer.Argument(help="NAME v3 v4, or NAME v4 against the one before.", metavar="NAME vN [vM]")
    ],
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """What changed between two versions in data, mix, configuration and software, and what it did to every metric."""
    from halo_forge.cli.lineage_words import print_diff
    from halo_forge.publish import name_and_version
    from halo_forge.publish.lineage import diff_versions, previous_version
    from halo_forge.publish.registry import version_directory
    from halo_forge.verdict import pair_versions

    if not 1 <= len(words) <= 3:
        raise UsageError("which versions?", expected="NAME v3 v4, NAME v4 or NAME", where=" ".join(words))
    name, *named = words
    found = [name_and_version(f"{name}@{version}")[1] for version in named]
    after = int(version_directory(registry, name, found[-1] if found else None).name[1:])
    before = found[0] if len(found) == 2 else previous_version(registry, name, after)
    if before is None:
        raise UsageError(f"{name} v{after} is the first version", expected="a version before it", where=str(registry))
    diff = diff_versions(registry, name, before, after, pair_versions)
    print_json(diff) if as_json else print_diff(diff)


@told_in_words
def changelog_command(
    name: NameArgument, registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False
) -> None:
    """Every version of a model as Markdown, newest first: what changed, what it did, and when users got it."""
    from halo_forge.cli.lineage_words import changelog_markdown
    from halo_forge.publish.changelog import changelog
    from halo_forge.verdict import pair_versions

    found = changelog(registry, name, pair_versions)
    print_json(found) if as_json else print(folded(changelog_markdown(found), 2, reading_width()))


def _version(number: int | None) -> str:
    return "none" if number is None else f"v{number}"


@told_in_words
def gc_command(
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without this nothing is changed.")] = False,
    grace_minutes: Annotated[float, typer.Option(min=0, help="Keep what changed more recently.")] = 60.0,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Find the bytes that no version and no running publisher needs; with --delete remove them."""
    from halo_forge.publish import collect

    found = collect(registry, remove=delete, grace_s=60 * grace_minutes)
    if as_json:
        print_json(found)
        return
    verb = "removed" if found.removed else "would remove"
    print(f"{verb} {len(found.blobs)} files and {len(found.stagings)} unfinished versions, {found.num_bytes:,} bytes")
    for name in (*found.blobs, *found.stagings):
        print(f"  {name}")
    if not found.removed and (found.blobs or found.stagings):
        print("nothing was changed; --delete removes them")


@told_in_words
def export_command(
    name: VersionArgument,
    format: Annotated[str, typer.Option("--format", "-f", help="merged, adapter, gguf, ollama or vllm.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write; must not exist.", metavar="DIR")],
    gguf_type: Annotated[str, typer.Option(help="Weights of a GGUF file: f32, f16, bf16 or q8_0.")] = "f16",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Write a version as another program wants it, after verifying every byte of it."""
    from halo_forge.publish import name_and_version
    from halo_forge.publish.export import FORMATS, export

    kind = next((known for known in FORMATS if known == format), None)
    if kind is None:
        raise UsageError(f"no format {format!r}", expected=f"one of: {', '.join(FORMATS)}")
    exported = export(registry, *name_and_version(name), kind, output, gguf_type=gguf_type, notify=_tell)
    if as_json:
        print_json(exported)
        return
    print(f"{exported.name} v{exported.version} as {exported.format}: {exported.path}")
    if exported.generated is not None:
        print(printable(f"llama.cpp, asked for the capital of France: {exported.generated}"))
    if exported.command is not None:
        print(exported.command)


@told_in_words
def push_command(
    name: VersionArgument,
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.", metavar="REPOSITORY")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    with_records: Annotated[
        bool, typer.Option("--with-records", help="Also the records that name paths and rows of your machine.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Upload a version to the Hugging Face Hub with its model card and results, after verifying every byte of it."""
    from halo_forge.publish import name_and_version
    from halo_forge.publish.push import push

    pushed = push(
        registry, *name_and_version(name), repository,
        private=not public, with_records=with_records, dry_run=dry_run,
    )  # fmt: skip
    if as_json:
        print_json(pushed)
        return
    verb = "would send" if dry_run else "sent"
    print(f"{verb} {len(pushed.files)} files, {pushed.num_bytes:,} bytes, to {pushed.repository}")
    for file in pushed.files if dry_run else ():
        print(f"  {file}")
    if pushed.url is not None:
        print(pushed.url)


def _tell(event: str, fields: Mapping[str, Any]) -> None:
    if event == "note":
        print(printable(f"  {fields['text']}"), file=sys.stderr)


COMMANDS = {
    "list": list_command,
    "show": show_command,
    "verify": verify_command,
    "sign": sign_command,
    "log": log_command,
    "diff": diff_command,
    "changelog": changelog_command,
    "alias": alias_command,
    "rollback": rollback_command,
    "gc": gc_command,
    "export": export_command,
    "push": push_command,
}
