"""A released version to the Hugging Face Hub: the model's files, the card with its results, the records that bind them.

The token is huggingface_hub's own business (HF_TOKEN or `hf auth login`); it is never read, logged or stored here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from halo_forge.artifacts import Record
from halo_forge.errors import HaloForgeError, UsageError
from halo_forge.publish.registry import verified_version

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
RECORDS_HELD_BACK = ("config.resolved.yaml", "environment.json", "data/manifest.json", "reference.json", "eval/*",
                     "iteration.json")  # fmt: skip
"""They name the publisher's paths, rows and machines. The card says what is in them; `with_records` sends them too."""


class Pushed(Record):
    """`commit` and `url` as the Hub answered; None after a dry run."""

    name: str
    version: int
    repository: str
    private: bool
    files: tuple[str, ...]
    num_bytes: int
    commit: str | None = None
    url: str | None = None


def push(
    registry: Path,
    name: str,
    version: int | str | None,
    repository: str,
    *,
    private: bool = True,
    with_records: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Upload a version, whose every byte was just verified, as one commit and the tag `v<version>`.

    private       of a repository that is made; one that exists keeps what it is
    with_records  also the records that name paths and rows of the machine it was trained on
    A tag that exists keeps its commit. Raises UsageError (name, offline, no token), DataError, HaloForgeError (Hub).
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise UsageError(f"{repository!r} cannot be a repository of the Hub", expected="OWNER/NAME")
    directory, manifest = verified_version(registry, name, version)
    held_back = () if with_records else RECORDS_HELD_BACK
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    files = [path for path in files if not any(path.relative_to(directory).match(word) for word in held_back)]
    pushed = Pushed(
        name=name,
        version=manifest.version,
        repository=repository,
        private=private,
        files=tuple(path.relative_to(directory).as_posix() for path in files),
        num_bytes=sum(path.stat().st_size for path in files),
    )
    if dry_run:
        return pushed
    commit = _upload(directory, pushed, manifest.in_words())
    return pushed.model_copy(update={"commit": commit.oid, "url": commit.commit_url})


def _upload(directory: Path, pushed: Pushed, description: str) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(library_name="halo-forge")
    tag = f"v{pushed.version}"
    try:
        api.create_repo(pushed.repository, private=pushed.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=pushed.repository,
            folder_path=directory,
            allow_patterns=list(pushed.files),
            commit_message=f"{pushed.name} {tag}",
            commit_description=description,
        )
        api.create_tag(pushed.repository, tag=tag, revision=commit.oid, exist_ok=True)
    except OfflineModeIsEnabled:
        raise UsageError(
            "the Hub is switched off here", where="HF_HUB_OFFLINE", fix="HF_HUB_OFFLINE=0 and the same command"
        ) from None
    except LocalTokenNotFoundError:
        raise UsageError("the Hub wants to know who you are", fix="hf auth login, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        fix = "hf auth login with a token that may write there" if status in (401, 403) else "the same command again"
        raise HaloForgeError(f"the Hub refused it: {_first_line(error)}", where=pushed.repository, fix=fix) from None
    except (OSError, HTTPError) as error:  # no route, no name, a connection that was cut
        raise HaloForgeError(
            f"the Hub cannot be reached: {_first_line(error)}", where=pushed.repository, fix="the same command again"
        ) from None
    return commit


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
