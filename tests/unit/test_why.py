"""Past decisions, explained by a program that saw none of them."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import Audit, Event
from gateway.decide import bucket, decide
from gateway.errors import ConfigError, GatewayError
from gateway.flagfile import parse_flags, version_of
from gateway.journal import Journal
from gateway.model import Backend, Caller, Decision, Reason, Route
from gateway.why import Explanation, explain_request, explain_subject, flags_at, moment

NOW = 1_800_000_000.0
KEY = "videos.list"
ROUTE = Route(KEY, ("/videos",), frozenset({"GET", "POST"}), frozenset({"GET"}))
TEXT = "version: 1\noverride: {override}\nroutes:\n  videos.list: {flag}\n"


def flag_file(flag: str = "{weight: 25, pins: ['user:1']}", override: str = "none") -> str:
    return TEXT.replace("{override}", override).replace("{flag}", flag)


def keep(state: Path, text: str) -> str:
    Audit(state).keep_version(version_of(text), text)
    return version_of(text)


def write(state: Path, *lines: dict[str, Any]) -> None:
    journal = Journal(state, 1 << 20)
    journal.start()
    for line in lines:
        journal.note(**line)
    journal.close()
    journal._thread.join()  # which waits no longer than 2 s


def line(version: str, decision: Decision, **changes: Any) -> dict[str, Any]:
    usual = {"id": "r1", "key": KEY, "method": "GET", "subject": "user:7", "version": version}
    usual |= {"backend": decision.backend, "reason": decision.reason, "bucket_bp": decision.bucket_bp, "status": 200}
    return usual | {"fallback": False, "shadow": decision.shadow} | changes


def record(state: Path, at: str, **changes: Any) -> Event:
    usual = Event(0, f"2026-03-01T{at}:00.000+00:00", "ann", "looks good", KEY, 10, 25, "", "", action="weight")
    return Audit(state).append(replace(usual, **changes))


def said(explanation: Explanation) -> str:
    json.dumps(explanation.facts)
    return "\n".join(explanation.sentences)


# --- a request


@given(
    flag=st.sampled_from(
        ["legacy", "fastapi", "{weight: 25}", "{weight: 99.5, pins: ['user:1'], shadow: 50}", "{shadow: 100}"]
    ),
    override=st.sampled_from(["none", "none", "legacy", "fastapi"]),
    subject=st.sampled_from(["", "user:1", "user:2", "user:3", "anon:9c"]),
    asked=st.sampled_from([None, *Backend]),
    held=st.booleans(),
    method=st.sampled_from(["GET", "POST"]),
    dice_bp=st.sampled_from([0, 4_999, 10_000]),
)
@settings(max_examples=60, deadline=None)
def test_any_decision_decided_again_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    flag: str,
    override: str,
    subject: str,
    asked: Backend | None,
    held: bool,
    method: str,
    dice_bp: int,
) -> None:
    state = tmp_path_factory.mktemp("state")
    version = keep(state, text := flag_file(flag, override))
    flags = replace(parse_flags(text, None), held=frozenset({KEY} if held else ()))
    decision = decide(flags, ROUTE, method, Caller(subject, asked), dice_bp=dice_bp)
    write(state, line(version, decision, subject=subject, method=method))

    explanation = explain_request(state, "r1")
    assert explanation.agrees is True
    assert "the same" in said(explanation)
    assert f"{decision.reason.value}: " in said(explanation)


@pytest.mark.parametrize("reason", [Reason.UNMATCHED, Reason.NEW])
def test_what_flags_have_no_say_in_is_the_same_decided_again(tmp_path: Path, reason: Reason) -> None:
    backend = Backend.FASTAPI if reason is Reason.NEW else Backend.LEGACY
    write(tmp_path, line(keep(tmp_path, flag_file()), Decision(backend, reason), key="", subject=""))
    explanation = explain_request(tmp_path, "r1")
    assert explanation.agrees is True
    assert "a path without a rule for nobody in particular" in said(explanation)


@pytest.mark.parametrize(
    "decision",
    [
        Decision(Backend.LEGACY, Reason.SPLIT, False, 100),
        Decision(Backend.FASTAPI, Reason.SPLIT, False, 100),
        Decision(Backend.FASTAPI, Reason.STATIC),
        Decision(Backend.FASTAPI, Reason.PINNED),
        Decision(Backend.LEGACY, Reason.OVERRIDE),
        Decision(Backend.LEGACY, Reason.SPLIT, True, bucket(KEY, "user:7")),
    ],
    ids=str,
)
def test_what_does_not_follow_from_the_flags_is_said_to_disagree(tmp_path: Path, decision: Decision) -> None:
    write(tmp_path, line(keep(tmp_path, flag_file()), decision))
    explanation = explain_request(tmp_path, "r1")
    assert explanation.agrees is False
    assert "!" in explanation.sentences[2 + decision.shadow]


def test_without_a_flag_file_everything_was_legacy(tmp_path: Path) -> None:
    write(tmp_path, line("", Decision(Backend.LEGACY, Reason.STATIC)))
    explanation = explain_request(tmp_path, "r1")
    assert explanation.agrees is True
    assert "static: the weight is 0 %, for everybody (no flag file)" in said(explanation)


def test_a_version_that_is_no_longer_kept_is_not_decided_again(tmp_path: Path) -> None:
    write(tmp_path, line("0123456789ab", Decision(Backend.FASTAPI, Reason.SPLIT, False, 77)))
    explanation = explain_request(tmp_path, "r1")
    assert explanation.agrees is None
    assert "split: bucket 0.77 % against a weight of ? % (flags not kept)" in said(explanation)
    assert "version 0123456789ab is not kept" in said(explanation)


def test_a_fallback_and_a_shadow_are_told(tmp_path: Path) -> None:
    version = keep(tmp_path, flag_file("{weight: 100, shadow: 10}"))
    write(tmp_path, line(version, Decision(Backend.FASTAPI, Reason.STATIC, True), fallback=True))
    words = said(explain_request(tmp_path, "r1"))
    assert "fastapi was chosen and failed, legacy answered 200 in its place" in words
    assert "also chosen to be replayed" in words


def test_who_made_it_so_is_told(tmp_path: Path) -> None:
    version = keep(tmp_path, text := flag_file())
    record(tmp_path, "03:00", key="other", why="something else")
    record(tmp_path, "03:10")
    write(tmp_path, line(version, decide(parse_flags(text, None), ROUTE, "GET", Caller("user:7"))))
    assert "Made so by event 2 of ann at 2026-03-01T03:10:00.000+00:00, from 10 to 25: looks good." in said(
        explain_request(tmp_path, "r1")
    )


def test_the_hold_of_a_breaker_and_the_panic_switch_are_told_by_their_own_events(tmp_path: Path) -> None:
    version = keep(tmp_path, flag_file())
    panic = keep(tmp_path, flag_file(override="legacy"))
    record(tmp_path, "03:00", action="hold", by="breaker", before=25, after="held", why="5 of 5 failed")
    record(tmp_path, "03:01", action="override", key="override", before="none", after="legacy", why="3 a.m.")
    record(tmp_path, "03:02", why="weight")
    held, thrown = Decision(Backend.LEGACY, Reason.HELD), Decision(Backend.LEGACY, Reason.OVERRIDE)
    write(tmp_path, line(version, held), line(panic, thrown, id="r2"))
    assert "5 of 5 failed" in said(explain_request(tmp_path, "r1"))
    assert "3 a.m." in said(explain_request(tmp_path, "r2"))


def test_a_request_nobody_noted_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match=r"no request 'r1\\x1b' in .*journal"):
        explain_request(tmp_path, "r1\x1b")


def test_control_characters_reach_no_terminal(tmp_path: Path) -> None:
    write(tmp_path, line("", Decision(Backend.LEGACY, Reason.STATIC), subject="user:\x1b[2J\n"))
    assert all(sentence.isprintable() for sentence in explain_request(tmp_path, "r1").sentences)


# --- a subject


def test_a_subject_is_explained_as_of_a_time(tmp_path: Path) -> None:
    texts = [flag_file(flag) for flag in ("legacy", "{weight: 50}", "fastapi")]
    versions = [keep(tmp_path, text) for text in texts]
    record(tmp_path, "03:00", before=0, after=50, version_before=versions[0], version=versions[1])
    record(tmp_path, "04:00", before=50, after=100, version_before=versions[1], version=versions[2])

    answers = []
    for clock in ("02:59", "03:30", "04:00"):
        at = moment(f"2026-03-01T{clock}", NOW)
        explanation = explain_subject(tmp_path, flags_at(tmp_path, at), ROUTE, "GET", "user:7", at=at)
        answers.append((explanation.facts["weight"], explanation.facts["reason"], explanation.facts["version"]))
        assert f"at 2026-03-01T{clock}:00+00:00" in explanation.sentences[0]
        assert ("Made so by" in said(explanation)) is (clock != "02:59")
    assert [(0, "static", versions[0]), (50, "split", versions[1]), (100, "static", versions[2])] == answers


def test_a_subject_is_explained_as_of_now(tmp_path: Path) -> None:
    explanation = explain_subject(tmp_path, parse_flags(flag_file(), None), ROUTE, "GET", "user:1")
    assert "GET videos.list for user:1 is for fastapi." == explanation.sentences[0]
    assert "pinned" == explanation.facts["reason"]


def test_a_hold_that_was_still_on_is_told(tmp_path: Path) -> None:
    flags = parse_flags(flag_file("{weight: 25}"), None)
    hold = record(tmp_path, "03:00", action="hold", by="breaker", before=25, after="held", why="5 of 5 failed")

    def held_by(clock: str, flags: Any = flags) -> int | None:
        at = moment(f"2026-03-01T{clock}", NOW)
        number: int | None = explain_subject(tmp_path, flags, ROUTE, "GET", "user:7", at=at).facts["held_by_event"]
        return number

    assert [None, hold.id] == [held_by("02:59"), held_by("03:01")]
    assert held_by("03:01", parse_flags(flag_file("legacy"), None)) is None
    record(tmp_path, "03:05", before=25, after=0, why="rolled back", by="breaker", action="rollback")
    assert [hold.id, None] == [held_by("03:01"), held_by("03:06")]


def test_a_time_of_which_nobody_knows_the_flags_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="the audit trail names none"):
        flags_at(tmp_path, NOW)
    record(tmp_path, "03:00", version="0123456789ab")
    with pytest.raises(GatewayError, match=r"version 0123456789ab was in force .* not kept"):
        flags_at(tmp_path, NOW)


# --- times


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15T08:00", NOW),
        ("2027-01-15 08:00", NOW),
        ("2027-01-15T09:00+01:00", NOW),
        ("1800000000", NOW),
        ("1800000000.5", NOW + 0.5),
        ("10m ago", NOW - 600),
        ("90s", NOW - 90),
        (" 2h ago ", NOW - 7200),
        ("1d ago", NOW - 86_400),
    ],
)
def test_a_time_is_taken_as_people_write_it(text: str, at: float) -> None:
    assert at == moment(text, NOW)


@pytest.mark.parametrize("text", ["", "yesterday", "-5m", "10", "25:00", "9" * 99, "10 m ago", "\x1b[2J", "٣m ago"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a time like"):
        moment(text, NOW)


@given(st.text(max_size=30))
def test_no_text_is_worse_than_refused(text: str) -> None:
    with suppress(ConfigError):
        moment(text, NOW)
