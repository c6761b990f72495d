"""A chat template (Jinja) as an Ollama Modelfile (Go template and stop strings), proven by rendering both.

Most templates write a prefix and a suffix around each turn, a default system turn where none is given, and a prefix
for the answer. Those parts are read off renderings; what does not fit them is refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halo_forge.errors import UsageError

Messages = list[dict[str, str]]
Render = Callable[[Messages, bool], str]
"""render(messages, add_generation_prompt) -> text"""
SYSTEM, USER, ANSWER = "\u2402system words\u2403", "\u2402user words\u2403", "\u2402assistant words\u2403"
ROLES = {"system": SYSTEM, "user": USER, "assistant": ANSWER}


@dataclass(frozen=True, slots=True)
class TurnParts:
    """`around`: role -> (before, after). `opening` stands before the first turn where that is no system turn, `start`
    before everything, `answer` before the answer that is asked for."""

    start: str
    opening: str
    around: dict[str, tuple[str, str]]
    answer: str


PROBES: tuple[Sequence[str], ...] = (
    ("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)  # fmt: skip


def turn_parts(render: Render) -> TurnParts:
    """What the template writes around each turn. Raises UsageError where turns are not written one by one."""
    user_alone = render(_messages(("user",)), False)
    with_system = render(_messages(("system", "user")), False)
    before_system, found, rest = with_system.partition(SYSTEM)
    before_user, has_user, after_user = rest.partition(USER)
    alone_before, alone, alone_after = user_alone.partition(USER)
    long = render(_messages(("user", "assistant", "user")), False)
    between, has_answer, _ = long.partition(USER)[2].partition(ANSWER)
    if not (found and has_user and alone and has_answer) or alone_after != after_user:
        raise _refused("a turn's words are not written as they are")
    asked = render(_messages(("user",)), True)
    if not asked.startswith(user_alone):
        raise _refused("asking for an answer changes what stands before")
    user_before = _common_suffix(before_user, alone_before)
    after_system = before_user.removesuffix(user_before)
    if not between.startswith(after_user):
        raise _refused("an earlier turn is written differently from the last")
    parts = TurnParts(
        start="",
        opening=alone_before.removesuffix(user_before),
        around={
            "system": (before_system, after_system),
            "user": (user_before, after_user),
            "assistant": (between.removeprefix(after_user), _after_answer(long, user_before, after_user)),
        },
        answer=asked.removeprefix(user_alone),
    )
    for probe in PROBES:
        for ask in (True, False):
            messages = _messages(probe)
            if written(parts, messages, ask) != render(messages, ask):
                raise _refused(f"the turns {', '.join(probe)} are not written one by one")
    return parts


def written(parts: TurnParts, messages: Messages, ask: bool) -> str:
    """What the Go template of these parts writes."""
    text = parts.start
    if not messages or messages[0]["role"] != "system":
        text += parts.opening
    for message in messages:
        before, after = parts.around[message["role"]]
        text += before + message["content"] + after
    return text + (parts.answer if ask else "")


def go_template(parts: TurnParts) -> str:
    """The same as Ollama reads it. Raises UsageError for a part that Go would take for an action."""
    pieces = [parts.start, parts.opening, parts.answer, *(part for pair in parts.around.values() for part in pair)]
    if any("{{" in piece or "}}" in piece or '"""' in piece for piece in pieces):
        raise _refused('it writes {{, }} or """, which mean something else in a Modelfile')
    system, user, answer = (parts.around[role] for role in ("system", "user", "assistant"))
    opening = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{parts.opening}{{{{ end }}}}' if parts.opening else ""
    return (
        f"{parts.start}{opening}{{{{ range .Messages }}}}"
        f'{{{{ if eq .Role "system" }}}}{system[0]}{{{{ .Content }}}}{system[1]}'
        f'{{{{ else if eq .Role "user" }}}}{user[0]}{{{{ .Content }}}}{user[1]}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer[0]}{{{{ .Content }}}}{answer[1]}'
        f"{{{{ end }}}}{{{{ end }}}}{parts.answer}"
    )


def modelfile(weights: str, parts: TurnParts, stops: Sequence[str]) -> str:
    """A Modelfile over a GGUF file beside it; greedy, as the model was evaluated."""
    lines = [f"FROM ./{weights}", f'TEMPLATE """{go_template(parts)}"""', "PARAMETER temperature 0"]
    lines += [f'PARAMETER stop "{_quoted(stop)}"' for stop in stops]
    return "\n".join(lines) + "\n"


def _quoted(stop: str) -> str:
    if any(character in stop for character in '"\\\n\r'):
        raise _refused(f"its stop string {stop!r} cannot be written in a Modelfile")
    return stop


def _messages(roles: Sequence[str]) -> Messages:
    return [{"role": role, "content": ROLES[role]} for role in roles]


def _after_answer(long: str, user_before: str, after_user: str) -> str:
    rest = long.partition(ANSWER)[2]
    after, found, _ = rest.partition(user_before + USER)
    if not found:
        raise _refused("nothing separates an answer from the next turn")
    return after


def _common_suffix(one: str, other: str) -> str:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


def _refused(why: str) -> UsageError:
    return UsageError(
        f"this chat template cannot be written as an Ollama template: {why}",
        expected="a prefix and a suffix around each turn",
        fix="export with --format vllm or --format gguf, whose runtimes read the template itself",
    )
