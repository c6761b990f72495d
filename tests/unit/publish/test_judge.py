"""The judge against a real server that speaks the protocol: honest, biased, fooled, broken, slow, and rate-limited."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from halo_forge.artifacts import JudgeReport
from halo_forge.cli.main import build
from halo_forge.config import load_config
from halo_forge.config.schema import Config, GateRule
from halo_forge.errors import ConfigError, Interrupted, UsageError
from halo_forge.evaluate.judge import CONTROLS, REPLIES, REPORT, judge_run, plan_judgement, winner_of
from halo_forge.evaluate.judge_client import JudgeClient, JudgeUnreachable
from halo_forge.runs import silent
from halo_forge.verdict import judge_evaluation

KEY = "sk-secret-1234"
Judge = Callable[[str, str, str], str]
MAX_ITEMS, NUM_CONTROLS = 25, 2
NUM_REQUESTS = 2 * (MAX_ITEMS + NUM_CONTROLS * len(CONTROLS))


def is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def says(winner: str) -> str:
    return json.dumps({"winner": winner})


def honest(prompt: str, a: str, b: str) -> str:
    """Prefers the answer that is a JSON object with a name, as the task asks."""
    good = [is_json(text) and '"name"' in text for text in (a, b)]
    return says("tie" if good[0] == good[1] else "A" if good[0] else "B")


class Server:
    """Chat completions over HTTP. `faults` are served first, one a request: a status, bytes, or a function."""

    def __init__(self) -> None:
        self.judge: Judge = honest
        self.faults: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.keys.append(self.headers.get("Authorization"))
                fault = server.faults.pop(0) if server.faults else None
                if callable(fault):
                    fault = fault()
                if isinstance(fault, tuple):
                    self.send_response(fault[0])
                    for name, value in fault[1].items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                asked = json.loads(body["messages"][1]["content"])
                text = server.judge(asked["prompt"], asked["answer_a"], asked["answer_b"])
                usage = {"prompt_tokens": 100, "completion_tokens": 7}
                answer = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
                data = fault if isinstance(fault, bytes) else json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def built(builder: ModuleType, tmp_path: Path) -> Any:
    return builder.build_run(tmp_path / "run")


def with_judge(built: Any, server: Server, **fields: Any) -> Config:
    asked = {"endpoint": server.url, "judge_model": "judge", "max_items": MAX_ITEMS, "num_controls": NUM_CONTROLS}
    judge = built.config.judge.model_validate({**asked, "max_retries": 2, "timeout_s": 10, **fields})
    return built.config.model_copy(update={"judge": judge})


def judged(built: Any, server: Server, **fields: Any) -> JudgeReport:
    config = with_judge(built, server, **fields)
    client = JudgeClient(config.judge, sleep=lambda _: None)
    return judge_run(config, built.run, built.report, client.ask, silent)


def verdict_on_win_rate(built: Any) -> tuple[str, str]:
    rules = [*built.config.gate.rules, GateRule(metric="judge_win_rate", min=0.5)]
    gate = built.config.gate.model_copy(update={"rules": rules})
    decision = judge_evaluation(built.config.model_copy(update={"gate": gate}), built.run, built.report)
    return decision.verdict, decision.rules[-1].reason


# ------------------------------------------------------------------------------------------------ what it decides


def test_an_honest_judge_compares_in_both_orders(built: Any, server: Server) -> None:
    report = judged(built, server, max_items=40)
    assert report.controls == dict.fromkeys(CONTROLS, NUM_CONTROLS)
    assert (report.wins + report.ties, report.losses, report.unusable) == (40, 0, 0)
    assert report.wins >= 30
    assert report.comparison.tuned.value == pytest.approx((report.wins + report.ties / 2) / 40)
    assert not report.comparison.tuned.subsampled
    num_requests = 2 * (40 + NUM_CONTROLS * len(CONTROLS))
    assert (report.num_requests, len(server.requests)) == (num_requests, num_requests)
    assert (report.prompt_tokens, report.completion_tokens) == (100 * num_requests, 7 * num_requests)
    assert verdict_on_win_rate(built)[0] == "PASS"


def test_a_part_of_the_answers_is_a_subsample(built: Any, server: Server) -> None:
    assert judged(built, server).comparison.tuned.subsampled
    verdict, reason = verdict_on_win_rate(built)
    assert (verdict, "of its items only" in reason) == ("INCONCLUSIVE", True)


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (lambda prompt, a, b: says("A"), "does not tell 8 of 8"),  # whichever stands first
        (lambda prompt, a, b: says("tie"), "does not tell 8 of 8"),
        (lambda prompt, a, b: "I cannot say", "does not tell 8 of 8"),
        (lambda prompt, a, b: says("A" if len(a) < len(b) else "B"), "prefers a worthless answer"),
        (lambda prompt, a, b: says("A" if a == "" else "B") if "" in (a, b) else honest(prompt, a, b), "(empty)"),
        (lambda prompt, a, b: says("A" if a == prompt else "B") if prompt in (a, b) else honest(prompt, a, b),
         "(copy_of_prompt)"),
        (lambda prompt, a, b: says("A" if "choose this" in a else "B") if "choose this" in a + b
         else honest(prompt, a, b), "(choose_me)"),
        (lambda prompt, a, b: says("A" if "museum" in a else "B") if "museum" in a + b else honest(prompt, a, b),
         "(off_topic)"),
    ],
)  # fmt: skip
def test_a_judge_that_accepts_a_control_has_no_say(built: Any, server: Server, judge: Judge, why: str) -> None:
    server.judge = judge
    report = judged(built, server)
    assert (report.comparison.tuned.status, report.comparison.tuned.value) == ("failed", None)
    assert why in str(report.comparison.tuned.note)
    assert len(server.requests) == 2 * NUM_CONTROLS * len(CONTROLS), "it is not asked about anything else"
    verdict, reason = verdict_on_win_rate(built)
    assert verdict == "INCONCLUSIVE"
    assert why in reason


def test_a_judge_that_mumbles_later_is_excluded_too(built: Any, server: Server) -> None:
    replies = iter(range(10**6))

    def mumbling(prompt: str, a: str, b: str) -> str:
        number = next(replies)
        return honest(prompt, a, b) if number < 16 or number % 3 else "Hm."

    server.judge = mumbling
    report = judged(built, server)
    assert report.comparison.tuned.status == "failed"
    assert "no verdict that can be read" in str(report.comparison.tuned.note)


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"winner": "A"}', "A"), (' Sure: {"winner":"b"} ', "B"), ('{"winner": "TIE"}', "tie"), ("A", None),
        ('{"winner": "A"} or {"winner": "B"}', None), ('{"winner": "C"}', None), ("", None),
        ('{"winner": ["A"]}', None),
    ],
)  # fmt: skip
def test_one_verdict_or_none(text: str, winner: str | None) -> None:
    assert winner_of(text) == winner


def test_answers_travel_as_data(built: Any, server: Server) -> None:
    judged(built, server)
    for request in server.requests:
        assert [message["role"] for message in request["messages"]] == ["system", "user"]
        assert set(json.loads(request["messages"][1]["content"])) == {"prompt", "answer_a", "answer_b"}
        assert request["temperature"] == 0


# ------------------------------------------------------------------------------------------------ the wire


@pytest.mark.parametrize(
    "fault",
    [(429, {"Retry-After": "1"}), (500, {}), (503, {}), b"not json", b'{"choices": []}',
     b'{"choices": [{"message": 3}]}', b'{"choices": [{"message": {"content": null}}]}', b"[" * 5000, b"x" * 1_100_000],
)  # fmt: skip
def test_what_may_pass_is_tried_again(built: Any, server: Server, fault: Any) -> None:
    server.faults = [fault, fault]
    waits: list[float] = []
    config = with_judge(built, server)
    client = JudgeClient(config.judge, sleep=waits.append)
    report = judge_run(config, built.run, built.report, client.ask, silent)
    assert report.comparison.tuned.status == "measured"
    assert client.num_attempts == NUM_REQUESTS + 2
    assert waits == ([1.0, 1.0] if isinstance(fault, tuple) and fault[1] else [0.5, 1.0])


def test_a_slow_answer_is_given_up_and_asked_again(built: Any, server: Server) -> None:
    release = threading.Event()
    server.faults = [lambda: release.wait(5) and None]
    start = time.monotonic()
    report = judged(built, server, timeout_s=0.3)
    release.set()
    assert report.comparison.tuned.status == "measured"
    assert time.monotonic() - start < 5
    assert len(server.requests) == NUM_REQUESTS + 1


def test_a_judge_that_stays_silent_is_an_error_and_the_rest_is_kept(built: Any, server: Server) -> None:
    def break_down() -> None:
        server.faults = [(503, {})] * 50

    server.faults = [None] * 20 + [break_down]
    with pytest.raises(JudgeUnreachable, match=r"HTTP 503 .*after 3 attempts"):
        judged(built, server)
    assert not built.run.file(REPORT).exists()
    kept = len(built.run.file(REPLIES).read_text().splitlines())
    assert kept == 21
    built.run.file(REPLIES).write_text(built.run.file(REPLIES).read_text() + '{"key": "torn')
    server.faults, server.requests = [], []
    report = judged(built, server)
    assert (len(server.requests), report.num_requests) == (NUM_REQUESTS - kept, NUM_REQUESTS - kept)
    assert report.prompt_tokens == 100 * NUM_REQUESTS, "what was paid earlier is counted too"
    server.requests = []
    assert judged(built, server).num_requests == 0 == len(server.requests)


@pytest.mark.parametrize("code", [400, 401, 404, 302])
def test_a_refusal_is_not_repeated_and_no_redirect_followed(
    built: Any, server: Server, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.faults = [(code, {"Location": f"{server.url}/elsewhere"})] * 9
    with pytest.raises(JudgeUnreachable) as raised:
        judged(built, server, api_key_env="JUDGE_KEY")
    assert len(server.requests) == 1
    assert KEY not in str(raised.value)


def test_the_key_comes_from_the_environment_and_stays_there(
    built: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UsageError, match="JUDGE_KEY holds no key"):
        judged(built, server, api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judged(built, server, api_key_env="JUDGE_KEY")
    assert set(server.keys) == {f"Bearer {KEY}"}
    for path in built.run.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_it_asks_no_faster_than_it_may(built: Any, server: Server) -> None:
    clock, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    config = with_judge(built, server, requests_per_minute=30)
    client = JudgeClient(config.judge, sleep=sleep, now=lambda: clock[0])
    judge_run(config, built.run, built.report, client.ask, silent)
    assert waits == [2.0] * (NUM_REQUESTS - 1)


def test_it_stops_when_it_is_told_to(built: Any, server: Server) -> None:
    def check() -> None:
        if len(server.requests) == 5:
            raise Interrupted("stopped")

    config = with_judge(built, server)
    with pytest.raises(Interrupted):
        judge_run(config, built.run, built.report, JudgeClient(config.judge, check).ask, silent)
    assert len(built.run.file(REPLIES).read_text().splitlines()) == 5


# ------------------------------------------------------------------------------------------------ around it


def test_a_dry_run_sends_nothing(built: Any, server: Server) -> None:
    arguments = ["judge", str(built.run.path), "--dry-run", "--set", f"judge.endpoint={server.url}"]
    arguments += ["--set", "judge.judge_model=judge", "--set", f"judge.max_items={MAX_ITEMS}"]
    done = CliRunner().invoke(build(), [*arguments, "--set", f"judge.num_controls={NUM_CONTROLS}"])
    assert done.exit_code == 0, done.output
    assert f"{NUM_REQUESTS} requests, 0 already answered" in done.stdout
    assert server.requests == []
    judged(built, server)
    plan = plan_judgement(with_judge(built, server), built.run)
    assert (plan.num_requests, plan.num_known, plan.estimated_tokens) == (NUM_REQUESTS, NUM_REQUESTS, 0)


def test_the_command_judges_and_says_what_it_cost(built: Any, server: Server) -> None:
    arguments = [
        "judge",
        str(built.run.path),
        "--set",
        f"judge.endpoint={server.url}",
        "--set",
        "judge.judge_model=judge",
    ]
    done = CliRunner().invoke(build(), arguments)
    assert done.exit_code == 0, done.output
    assert "judged by judge: tuned wins" in done.stdout
    assert (
        f"({len(server.requests)} requests, {100 * len(server.requests):,} + {7 * len(server.requests):,} tokens)"
        in done.stdout
    )
    assert JudgeReport.model_validate_json(built.run.file(REPORT).read_bytes()).num_requests == len(server.requests)


def test_a_judgement_of_other_answers_decides_nothing(built: Any, server: Server) -> None:
    judged(built, server, max_items=40)
    answers = built.run.file("eval/answers.jsonl")
    answers.write_text(answers.read_text() + "\n")
    verdict, reason = verdict_on_win_rate(built)
    assert (verdict, "judged other answers" in reason) == ("INCONCLUSIVE", True)


def test_without_a_judge_the_command_says_how_to_name_one(built: Any) -> None:
    done = CliRunner().invoke(build(), ["judge", str(built.run.path)])
    assert done.exit_code == 2
    assert "judge.judge_model" in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [(["judge.endpoint=ftp://host"], "http:// or https://"), (["judge.endpoint=http://host/v1"], "judge_model"),
     (["judge.api_key=sk-1"], "a configuration never holds one")],
)  # fmt: skip
def test_a_judge_that_cannot_be_reached_is_refused_at_once(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(overrides=settings, environment={})


def test_a_local_model_judges_and_an_untrained_one_is_excluded(built: Any, tiny_model_dir: Path) -> None:
    from halo_forge.evaluate.local_judge import LocalJudge
    from halo_forge.models.compute import recall_compute

    fields = {"judge_model": str(tiny_model_dir), "max_items": 2, "num_controls": 1, "max_reply_tokens": 8}
    judge = built.config.judge.model_validate(fields)
    config = built.config.model_copy(update={"judge": judge})
    local = LocalJudge(judge, recall_compute(built.run, False))
    report = judge_run(config, built.run, built.report, local.ask, silent)
    assert report.comparison.tuned.status == "failed"
    assert (report.endpoint, report.num_requests) == (None, 8)
    assert report.completion_tokens > 0
