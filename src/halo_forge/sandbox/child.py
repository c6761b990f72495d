"""The program inside: reads its order, closes every door, and only then runs what it was given.

Started by run.py as a script with an empty environment and without site packages. One of four roles:

    program   run the code as __main__                                   the answer is what it prints
    compile   compile it, run nothing                                    the answer goes to the verdict pipe
    answer    run it, then call its functions for the tester, one by one
    test      run the tests, in which those functions are remote; the answer goes to the verdict pipe

The process that runs foreign code (`program`, `answer`) never holds the verdict pipe, never sees the tests and shares
no memory with the process that does. All it can do is return values.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
for _name in ("halo_forge", "halo_forge.sandbox"):  # the packages' own __init__ would import far more
    sys.modules[_name] = types.ModuleType(_name)
    sys.modules[_name].__path__ = [HERE]

from halo_forge.sandbox.lockdown import lock_down  # noqa: E402
from halo_forge.sandbox.values import MAX_CHARS, text_to_value, value_to_text  # noqa: E402

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
MAX_REASON_CHARS = 300
MAX_INT_DIGITS = 100_000
ENDS_A_LOOP = ("StopIteration", "StopAsyncIteration", "GeneratorExit")


class BadTests(BaseException):
    """The tests themselves cannot be run: that says nothing about the answer."""


def main() -> None:
    with open(int(sys.argv[1]), "rb") as file:
        order = json.loads(file.read())
    readable = [path for path in (*sys.path, *LIBRARIES) if os.path.exists(path)]
    keep = [order[name] for name in ("calls", "answers", "verdict", "locked") if name in order]
    lock_down(order["limits"], readable, order["scratch"], keep, order["without"])
    os.write(order["locked"], b"locked")
    os.close(order["locked"])
    os.environ.clear()
    sys.argv = [""]
    sys.set_int_max_str_digits(MAX_INT_DIGITS)
    for name in [name for name in sys.modules if name.startswith("halo_forge")]:
        del sys.modules[name]
    ROLES[order["role"]](order)


def _program(order: dict[str, Any]) -> None:
    _execute(order["code"], {"__name__": "__main__"}, "<answer>")


def _execute(code: str, names: dict[str, Any], file: str) -> None:
    exec(compile(code, file, "exec"), names)


def _compile(order: dict[str, Any]) -> None:
    try:
        compile(order["code"], "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        _verdict(order, "failed", _reason(error))
    else:
        _verdict(order, "passed", "")


# ------------------------------------------------------------------------------------------------ the code under test


def _answer(order: dict[str, Any]) -> None:
    names: dict[str, Any] = {"__name__": "answer"}
    with open(order["calls"], encoding="ascii") as calls, open(order["answers"], "w", encoding="ascii") as answers:
        try:
            _execute(order["setup"], names, "<setup>")
            _execute(order["code"], names, "<answer>")
            reply: dict[str, Any] = {"ready": True}
        except Exception as error:
            reply = _raised(error)
        _send(answers, reply)
        for line in calls:
            call = json.loads(line)
            try:
                arguments, named = text_to_value(call["arguments"])
                result = names[call["name"]](*arguments, **named)
                reply = {"value": value_to_text(result)}
            except Exception as error:
                reply = _raised(error)
            _send(answers, reply)


def _send(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _raised(error: Exception) -> dict[str, Any]:
    return {"raised": type(error).__name__, "reason": _words(error)}


def _words(error: BaseException) -> str:
    try:
        return str(error)[:MAX_REASON_CHARS]
    except Exception:
        return ""


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {_words(error)}".rstrip(": ")


# ------------------------------------------------------------------------------------------------ the tests


def _test(order: dict[str, Any]) -> None:
    with open(order["calls"], "w", encoding="ascii") as calls, open(order["answers"], encoding="ascii") as answers:
        remote = Remote(calls, answers)
        names: dict[str, Any] = {"__name__": "tests"}
        try:
            try:
                _execute(order["setup"], names, "<setup>")
                code = compile(order["tests"], "<tests>", "exec")
            except Exception as error:
                raise BadTests(_reason(error)) from None
            remote.start()
            names.update({name: remote.function(name) for name in order["entry_points"]})
            exec(code, names)
            if callable(names.get("check")) and "check" not in order["entry_points"]:
                names["check"](names[order["entry_points"][0]])
            if not remote.num_calls:
                raise BadTests("the tests never call the code")
        except BadTests as error:
            _verdict(order, "bad_tests", str(error))
        except BaseException as error:
            bad = remote.is_started and not remote.num_calls
            _verdict(order, "bad_tests" if bad else "failed", _reason(error))
        else:
            _verdict(order, "passed", f"{remote.num_calls} calls")


class Remote:
    """The functions of the other process: arguments and results by value, errors by their built-in name."""

    def __init__(self, calls: Any, answers: Any) -> None:
        self._calls, self._answers = calls, answers
        self.num_calls = 0
        self.is_started = False

    def start(self) -> None:
        """Wait until the code under test has run; raises what it raised."""
        self._receive()
        self.is_started = True

    def function(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.num_calls += 1
            try:
                text = value_to_text((arguments, named))
            except (TypeError, ValueError) as error:
                raise BadTests(f"an argument of the tests cannot be passed on: {error}") from None
            try:
                _send(self._calls, {"name": name, "arguments": text})
            except BrokenPipeError:
                raise RuntimeError("the code ended before it answered") from None
            return self._receive()

        call.__name__ = name
        return call

    def _receive(self) -> Any:
        line = self._answers.readline(2 * MAX_CHARS)
        if not line.endswith("\n"):
            raise RuntimeError("the code ended before it answered")
        reply = json.loads(line)
        if "raised" in reply:
            raise _builtin_error(str(reply["raised"]))(str(reply["reason"]))
        return text_to_value(reply["value"]) if "value" in reply else None


def _builtin_error(name: str) -> type[Exception]:
    """RuntimeError for what is no built-in exception, and for those that would end a loop of the tests early."""
    kind = getattr(builtins, name, None)
    known = isinstance(kind, type) and issubclass(kind, Exception) and name not in ENDS_A_LOOP
    return kind if known and kind is not None and not issubclass(kind, UnicodeError) else RuntimeError


def _verdict(order: dict[str, Any], status: str, reason: str) -> None:
    line = json.dumps({"nonce": order["nonce"], "status": status, "reason": reason})
    os.write(order["verdict"], line.encode() + b"\n")


ROLES: dict[str, Callable[[dict[str, Any]], None]] = {
    "program": _program, "compile": _compile, "answer": _answer, "test": _test,
}  # fmt: skip

if __name__ == "__main__":
    main()
