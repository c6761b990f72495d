"""A model's name becomes a directory on this machine. No torch, so that a wrong name fails in a moment.

In this order: a directory of that name; the embedded default, a packaged Whisper and the graft; the Hub cache; the Hub.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path

from halo_forge.errors import ModelNotFound
from halo_forge.models import embedded, embedded_whisper, graft, hub, inspection
from halo_forge.runs import Notify, silent


def resolve_model(name: str, revision: str | None = None, *, weights: bool = True, notify: Notify = silent) -> Path:
    """The local directory of a model: inspected, whole, and free of anything that would run code.

    name      a directory, `smollm2-135m-instruct`, `smolvlm-graft`, `whisper-tiny.en`, `whisper-base`, or a Hub id
    revision  branch, tag or commit; for Hub ids only
    weights   False settles for what a tokenizer needs: no weights are downloaded or looked for
    Raises ModelNotFound with the way out. Offline that takes well under a second.
    """
    if not name.strip():
        raise ModelNotFound("no model was named", where="model.name", fix=f"--model {embedded.NAME}")
    try:
        directory = Path(name).expanduser()
        if directory.is_dir():
            return _local(directory, revision, weights=weights)
        is_file = directory.exists()
    except (OSError, RuntimeError) as error:  # no permission; a name longer than any file's; no such user as in ~user
        raise ModelNotFound(f"cannot look for the model: {error}", where=name[:200]) from None
    if is_file:
        raise ModelNotFound(
            "this is a file, not a model directory", where=name, expected="a directory with config.json",
            fix=f"give its directory: {directory.parent}",
        )  # fmt: skip
    if name.lower() == embedded.NAME and revision is None and embedded.package_directory() is not None:
        return embedded.embedded_model(notify)
    if name.lower() == graft.NAME and revision is None:
        return graft.grafted_model(notify)
    speech = embedded_whisper.packaged(name)
    if speech is not None and name.lower() == speech.name and revision is None and speech.files() is not None:
        return embedded_whisper.packaged_model(speech, notify)
    model_id = embedded.HUB_ID if name.lower() == embedded.NAME else speech.hub_id if speech is not None else name
    if not hub.is_hub_id(model_id):
        raise _unknown(name, "there is no such directory, and this is not a Hub id")
    snapshot = hub.cached_snapshot(model_id, revision, weights=weights)
    if snapshot is not None:
        inspection.check_model_directory(snapshot, weights=weights)
        return snapshot
    return _from_hub(name, model_id, revision, weights=weights, notify=notify)


def _local(directory: Path, revision: str | None, *, weights: bool) -> Path:
    if revision is not None:
        raise ModelNotFound(
            f"a local directory has no revision `{revision}`", where=str(directory),
            expected="model.revision only with a Hub id", fix="remove model.revision",
        )  # fmt: skip
    inspection.check_model_directory(directory, weights=weights)
    return directory.resolve()


def _from_hub(name: str, model_id: str, revision: str | None, *, weights: bool, notify: Notify) -> Path:
    try:
        snapshot = hub.fetch_snapshot(model_id, revision, weights=weights, notify=notify)
    except ModelNotFound as error:
        if (speech := embedded_whisper.packaged(model_id)) is not None and revision is None:
            return _packaged_whisper(speech, error, notify)
        if model_id != embedded.HUB_ID or revision is not None:
            raise _with_suggestion(error, name) from None
        if embedded.package_directory() is None:
            raise ModelNotFound(error.what, expected=error.expected, fix=embedded.INSTALL) from None
        notify("note", {"text": f"{error.what}; using the embedded copy, whose weights are the same model in 4 bits"})
        return embedded.embedded_model(notify)
    inspection.check_model_directory(snapshot, weights=weights)
    return snapshot


def _packaged_whisper(speech: embedded_whisper.PackagedWhisper, error: ModelNotFound, notify: Notify) -> Path:
    """In place of what the Hub did not give."""
    if speech.files() is None:
        raise ModelNotFound(error.what, expected=error.expected, fix=speech.install) from None
    notify("note", {"text": f"{error.what}; using the packaged copy, the same model rounded to float16"})
    return embedded_whisper.packaged_model(speech, notify)


def _unknown(name: str, reason: str) -> ModelNotFound:
    return _with_suggestion(
        ModelNotFound(
            f"the model {name} was not found: {reason}",
            expected=f"a local directory, a Hub id like owner/name, or `{embedded.NAME}`",
        ),
        name,
    )


def _with_suggestion(error: ModelNotFound, name: str) -> ModelNotFound:
    others = [known for known in _known_names(name) if known != name]
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
    if not near:
        return error
    fix = f"did you mean {near[0]}?" + (f" Or: {error.fix}" if error.fix else "")
    return ModelNotFound(error.what, where=error.where, expected=error.expected, fix=fix)


def _known_names(name: str) -> list[str]:
    """Names that would have worked: the default, cached Hub ids, and model directories beside the one named."""
    whisper = [name for speech in embedded_whisper.MODELS for name in (speech.name, speech.hub_id)]
    names = [embedded.NAME, embedded.HUB_ID, *whisper, *hub.cached_model_ids()]
    parent = Path(name).expanduser().parent
    with suppress(OSError):  # a folder we may not look into
        names += [str(path) for path in parent.iterdir() if (path / "config.json").is_file()]
    return names
