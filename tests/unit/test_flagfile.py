"""What a flag file may say, what is said when it does not, and edits that keep everything else."""

import time
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import FlagFileError
from gateway.flagfile import (
    SetOverride,
    SetShadow,
    SetWeight,
    basis_points,
    edit,
    parse_flags,
    percent,
    printable,
    version_of,
)
from gateway.model import Backend, Flag, FlagSet, Rollout

KNOWN = ["health.status", "videos.get_video", "videos.list_videos", "downloads.start"]
FULL = """\
version: 1
override: none                 # none | legacy | fastapi
rollouts:
  careful:
    {steps: [1, 5, 25.5, 100], every: 10m, min_requests: 50, max_errors: 2%, max_mismatches: 0.1%, max_p95_ratio: 1.25}
  hasty: {steps: [100], every: "30s"}

routes:
  health.status: fastapi
  videos.list_videos: {weight: 25, shadow: 0.01}
  videos.get_video:
    # watched only
    shadow: 100
    ignore: ["$.updated_at", header.etag]
  downloads.start:   {weight: 12.34, cohort: downloads, pins: ["user:7", user:8], rollout: careful}
"""


def parse(text: str) -> FlagSet:
    return parse_flags(text, KNOWN, "flags.yaml")


def refusal(text: str) -> FlagFileError:
    with pytest.raises(FlagFileError) as caught:
        parse(text)
    return caught.value


def test_a_file_with_everything_in_it() -> None:
    careful = Rollout("careful", (100, 500, 2550, 10_000), 600.0, 50, 200, 10, 1.25)
    flags = [
        Flag("health.status", 10_000),
        Flag("videos.list_videos", 2500, 1),
        Flag("videos.get_video", 0, 10_000, ignore=("$.updated_at", "header.etag")),
        Flag("downloads.start", 1234, 0, "downloads", frozenset({"user:7", "user:8"}), rollout="careful"),
    ]
    expected = FlagSet(
        version=version_of(FULL),
        override=None,
        flags={flag.key: flag for flag in flags},
        rollouts={"careful": careful, "hasty": Rollout("hasty", (10_000,), 30.0)},
    )
    assert expected == parse(FULL)


def test_the_version_is_the_beginning_of_the_sha_256_of_the_text() -> None:
    assert parse("version: 1\n").version == "09bfcc6a14b8"


@pytest.mark.parametrize(
    "text", ["version: 1\n", "version: 1\nroutes:\nrollouts: # none yet\n", "\ufeffversion: 1\r\n"]
)
def test_a_file_that_names_no_route_leaves_everything_to_legacy(text: str) -> None:
    assert (None, {}, {}) == (parse(text).override, parse(text).flags, parse(text).rollouts)


def test_without_known_routes_any_route_may_be_named() -> None:
    assert parse_flags("version: 1\nroutes: {a b: 5}\n", None).flags == {"a b": Flag("a b", 500)}


@pytest.mark.parametrize(("word", "side"), [("none", None), ("legacy", Backend.LEGACY), ("fastapi", Backend.FASTAPI)])
def test_the_panic_switch_has_three_positions(word: str, side: Backend | None) -> None:
    assert parse(f"version: 1\noverride: {word}\n").override == side


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_every_weight_of_two_decimals_is_exact(weight_bp: int) -> None:
    assert weight_bp == basis_points(str(percent(weight_bp)))
    text = f"version: 1\nroutes: {{health.status: {weight_bp / 100:.2f}}}\n"
    assert weight_bp == parse(text).flags["health.status"].weight_bp


WRONG_WEIGHTS = [
    "101",
    "100.01",
    "-1",
    "12.345",
    "1e1",
    "0x10",
    "1_0",
    ".nan",
    ".inf",
    "-.inf",
    "true",
    "~",
    "",
    "much",
]
WRONG_WEIGHTS += ["'25'", '"25"', "25%", "٢٥", "[25]", "2 5", "on", "Legacy", "9" * 5000]


@pytest.mark.parametrize("weight", WRONG_WEIGHTS, ids=lambda w: w[:12] or "nothing")
@pytest.mark.parametrize("entry", ["health.status: {}", "health.status: {{weight: {}}}"], ids=["short", "mapping"])
def test_a_weight_that_is_no_percentage_is_refused(entry: str, weight: str) -> None:
    error = refusal("version: 1\nroutes:\n  " + entry.format(weight) + "\n")
    assert error.line == 3
    assert error.key.startswith("health.status")
    assert "expected" in str(error)


def in_route(text: str) -> str:
    return f"version: 1\nroutes:\n  health.status: {text}\n"


def in_rollout(text: str) -> str:
    return f"version: 1\nrollouts:\n  r: {text}\n"


REFUSALS = {
    "empty": ("", "flags.yaml:1: the file is empty; expected `version: 1`"),
    "blank": (" \n\n", "flags.yaml:1: the file is empty"),
    "only comments": ("# nothing\n", "flags.yaml:1: the file is empty"),
    "cut off": ("version: 1\nroutes:\n  health.status: 2", "flags.yaml:3: cut off: the last line"),
    "a list": ("- version\n", "flags.yaml:1: expected a mapping, not a list"),
    "a text": ("version\n", "flags.yaml:1: expected a mapping, not version"),
    "no version": ("routes: {}\n", "flags.yaml:1: version: missing; expected `version: 1`"),
    "another version": ("version: 2\n", "flags.yaml:1: version: expected 1, not 2"),
    "a quoted version": ("version: '1'\n", "flags.yaml:1: version: expected 1, not '1'"),
    "a wrong top-level key": ("version: 1\nrouts: {}\n", "flags.yaml:2: unknown key 'routs'; did you mean 'routes'?"),
    "a wrong override": ("version: 1\noverride: flask\n", "flags.yaml:2: override: expected none, legacy or fastapi"),
    "override off": ("version: 1\noverride: false\n", "flags.yaml:2: override: expected none, legacy or fastapi"),
    "routes as a list": ("version: 1\nroutes: [a]\n", "flags.yaml:2: routes: expected a mapping, not a list"),
    "an unknown route": (
        "version: 1\nroutes:\n  videos.get_vidio: 5\n",
        "flags.yaml:3: videos.get_vidio: no such route; did you mean 'videos.get_video'?",
    ),
    "an unknown key": (
        in_route("{wait: 5}"),
        "flags.yaml:3: health.status: unknown key 'wait'; did you mean 'weight'?",
    ),
    "a duplicate route": (
        "version: 1\nroutes:\n  health.status: 1\n  health.status: 2\n",
        "flags.yaml:4: health.status: given twice, first in line 3",
    ),
    "a duplicate key": ("version: 1\nversion: 1\n", "flags.yaml:2: version: given twice, first in line 1"),
    "a duplicate key in braces": (in_route("{weight: 1, weight: 2}"), "flags.yaml:3: weight: given twice"),
    "a route without a value": (in_route(""), "flags.yaml:3: health.status: expected legacy, fastapi, a percentage"),
    "a list for a route": (in_route("[5]"), "flags.yaml:3: health.status: expected a mapping, not a list"),
    "a cohort that is a number": (in_route("{cohort: 7}"), "health.status.cohort: expected a text, not 7"),
    "an empty cohort": (in_route("{cohort: ''}"), "health.status.cohort: expected a text without control"),
    "a cohort that cannot be hashed": (in_route(r'{cohort: "\ud800"}'), "cohort: expected a text without control"),
    "a pin that is no list": (in_route("{pins: user:7}"), "health.status.pins: expected a list of subjects"),
    "a pin that is a number": (in_route("{pins: [user:7, 8]}"), "health.status.pins: expected a text, not 8"),
    "a place that is none": (in_route("{ignore: [updated_at]}"), "health.status.ignore: 'updated_at': expected"),
    "an unknown rollout": (in_route("{rollout: fast}"), "health.status.rollout: no such rollout: fast"),
    "steps that do not rise": (
        in_rollout("{steps: [1, 5, 5], every: 1m}"),
        "flags.yaml:3: rollouts.r.steps: expected more than 5, not 5",
    ),
    "no steps": (in_rollout("{steps: [], every: 1m}"), "rollouts.r.steps: expected at least one percentage"),
    "steps missing": (in_rollout("{every: 1m}"), "flags.yaml:3: rollouts.r.steps: missing"),
    "a pause missing": (in_rollout("{steps: [1]}"), "flags.yaml:3: rollouts.r.every: missing"),
    "a pause without unit": (in_rollout("{steps: [1], every: 10}"), "rollouts.r.every: expected a time like 30s"),
    "no pause": (in_rollout("{steps: [1], every: 0s}"), "rollouts.r.every: expected a time like 30s"),
    "a share without sign": (in_rollout("{steps: [1], every: 1m, max_errors: 1}"), "max_errors: expected a percentage"),
    "no requests": (in_rollout("{steps: [1], every: 1m, min_requests: 0}"), "min_requests: expected a whole number"),
    "a ratio below 1": (in_rollout("{steps: [1], every: 1m, max_p95_ratio: 0.5}"), "max_p95_ratio: expected a number"),
    "an infinite ratio": (
        in_rollout("{steps: [1], every: 1m, max_p95_ratio: .inf}"),
        "max_p95_ratio: expected a number",
    ),
    "bad syntax": ("version: 1\nroutes:\n  a: b: c\n", "flags.yaml:3: not YAML: mapping values are not allowed here"),
    "an open brace": ("version: 1\nroutes: {\n", "flags.yaml:3: not YAML: "),
    "an open quote": ("version: 1\noverride: 'none\n", "flags.yaml:3: not YAML: "),
    "a tab": ("version: 1\nroutes:\n\thealth.status: 5\n", "flags.yaml:3: not YAML: "),
    "a control character": ("version: 1\n\x00\n", "flags.yaml:2: not YAML: a control character"),
    "a terminal sequence": ('version: 1\nroutes:\n  "\\e[31m": 5\n', r"flags.yaml:3: \x1b[31m: no such route"),
    "an anchor": ("version: &one 1\n", "flags.yaml:1: anchors and aliases are not allowed"),
    "an alias": ("version: 1\nroutes: *all\n", "flags.yaml:2: anchors and aliases are not allowed"),
    "a merge": ("version: 1\nroutes:\n  <<: {}\n", "flags.yaml:3: <<: no such route"),
    "a tag": ("version: !!int 1\n", "flags.yaml:1: tags are not allowed"),
    "a constructor": ("version: 1\nroutes: !!python/object/apply:os.system [id]\n", "flags.yaml:2: tags are not"),
    "two documents": ("version: 1\n---\nversion: 1\n", "flags.yaml:3: expected one document"),
    "a directive": ("%YAML 1.1\n---\nversion: 1\n", "flags.yaml:1: directives are not allowed"),
    "a mapping as a key": ("version: 1\nroutes:\n  ? {a: 1}\n  : 5\n", "flags.yaml:3: expected a name, not a mapping"),
    "deep nesting": ("version: 1\nroutes: " + "[" * 100_000 + "\n", "flags.yaml:2: nested more than 8 deep"),
    "surrogates": ("version: \ud800\n", "flags.yaml:1: not YAML: a control character"),
}


@pytest.mark.parametrize(("text", "says"), REFUSALS.values(), ids=REFUSALS)
def test_a_wrong_file_is_refused_in_one_sentence_with_its_line(text: str, says: str) -> None:
    error = refusal(text)
    assert says in str(error)
    assert error.line
    assert str(error).isprintable()


def test_a_hostile_file_is_refused_quickly() -> None:
    bomb = "version: 1\na: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(1000))
    started = time.thread_time()
    for text in (bomb, "[" * 500_000 + "\n", "version: 1\nroutes: " + "{a: " * 100_000 + "\n"):
        refusal(text)
    assert time.thread_time() - started < 5


def test_every_truncation_is_refused_or_is_a_complete_file_of_its_own() -> None:
    whole = parse(FULL)
    for end in range(len(FULL)):
        try:
            part = parse(FULL[:end])
        except FlagFileError:
            continue
        assert FULL[end - 1] == "\n"
        assert set(part.flags) <= set(whole.flags)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    for candidate in (text, f"version: 1\nroutes:\n  {text}\n"):
        with suppress(FlagFileError):
            parse_flags(candidate, None)


def test_printable_text_has_no_control_characters_and_an_end() -> None:
    assert printable("é\x1b[31m\n\u202e\ud800") == r"é\x1b[31m\n\u202e\ud800"
    assert printable("x" * 1000, 10) == "x" * 10 + "…"


# --- edits --------------------------------------------------------------------------------------------------------


def test_an_edit_changes_the_number_and_no_other_character() -> None:
    text, flags = edit(FULL, SetWeight("videos.list_videos", 3000), KNOWN)
    assert text == FULL.replace("{weight: 25,", "{weight: 30,")
    assert flags == parse(text)

    text, _ = edit(FULL, SetWeight("health.status", 1250), KNOWN)
    assert text == FULL.replace("health.status: fastapi", "health.status: 12.5")

    text, _ = edit(FULL, SetOverride("legacy"), KNOWN)
    assert text == FULL.replace("override: none ", "override: legacy ")

    text, _ = edit(FULL, SetShadow("videos.list_videos", 1000), KNOWN)
    assert text == FULL.replace("shadow: 0.01}", "shadow: 10}")

    text, _ = edit(FULL, SetShadow("health.status", 1250), KNOWN)
    assert text == FULL.replace("health.status: fastapi", "health.status: {weight: 100, shadow: 12.5}")


ADDITIONS = {
    "version: 1\n": "version: 1\nroutes:\n  a: 5\n",
    "version: 1\nroutes:\n": "version: 1\nroutes:\n  a: 5\n",
    "version: 1\nroutes: {} # none yet\nrollouts:\n": "version: 1\nroutes: # none yet\n  a: 5\nrollouts:\n",
    "version: 1\nroutes: {b: 1}\n": "version: 1\nroutes: {a: 5, b: 1}\n",
    "{version: 1}\n": "{routes: {a: 5}, version: 1}\n",
    "{version: 1, routes: }\n": "{version: 1, routes: {a: 5} }\n",
    "version: 1\nroutes: {a: {}}\n": "version: 1\nroutes: {a: {weight: 5}}\n",
    "version: 1\nroutes:\n  a: {}\n": "version: 1\nroutes:\n  a:\n    weight: 5\n",
    "version: 1\nroutes:\n  a: {shadow: 1} # c\n": "version: 1\nroutes:\n  a: {weight: 5, shadow: 1} # c\n",
    "version: 1\nroutes:\n  a:\n    shadow: 1 # c\n# end\n": (
        "version: 1\nroutes:\n  a:\n    shadow: 1 # c\n    weight: 5\n# end\n"
    ),
    "version: 1\nroutes:\n    b: 1 # one\n\n# below\noverride: none\n": (
        "version: 1\nroutes:\n    b: 1 # one\n    a: 5\n\n# below\noverride: none\n"
    ),
    "version: 1\nroutes:\n  b:\n    pins:\n    - x\n...\n": (
        "version: 1\nroutes:\n  b:\n    pins:\n    - x\n  a: 5\n...\n"
    ),
    "version: 1\r\nroutes:\r\n  b: 1\r\n": "version: 1\r\nroutes:\r\n  b: 1\r\n  a: 5\r\n",
}


@pytest.mark.parametrize(("before", "after"), ADDITIONS.items())
def test_what_is_missing_is_added_in_the_style_of_its_place(before: str, after: str) -> None:
    assert (after, 500) == (text := edit(before, SetWeight("a", 500), None)[0], parse_flags(text, None)["a"].weight_bp)


def test_a_missing_panic_switch_is_added_below_the_version() -> None:
    text, _ = edit("version: 1 # one\n\nroutes:\n  a: 5\n", SetOverride("fastapi"), None)
    assert text == "version: 1 # one\noverride: fastapi\n\nroutes:\n  a: 5\n"


names = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8)
scalars = st.sampled_from(["legacy", "fastapi", "0", "12.5", "{}", "{shadow: 5}", "{pins: [x],\n     weight: 7}"])


@st.composite
def files(draw: st.DrawFn) -> str:
    routes = draw(st.dictionaries(st.sampled_from("abcdef"), scalars, max_size=4))
    comment = st.sampled_from(["", " # note", "\n", "\n  # note\n"])
    lines = "".join(f"  {key}: {value}{draw(comment)}\n" for key, value in routes.items())
    parts = [f"routes:\n{lines}", draw(st.sampled_from(["", "override: legacy # panic\n", "rollouts: {}\n\n# end\n"]))]
    return "version: 1\n" + "\n".join(draw(st.permutations(parts)))


@settings(deadline=None, max_examples=50)
@given(files(), st.sampled_from("abcdefgh") | names, st.integers(0, 10_000))
def test_an_edit_means_what_was_meant_and_keeps_every_comment(text: str, key: str, weight_bp: int) -> None:
    old = parse_flags(text, None)
    edited, new = edit(text, SetWeight(key, weight_bp), None)
    assert new == replace(SetWeight(key, weight_bp).flags(old), version=version_of(edited))

    shadowed, both = edit(edited, SetShadow(key, weight_bp), None)
    assert both == replace(SetShadow(key, weight_bp).flags(new), version=version_of(shadowed))

    switched, thrown = edit(shadowed, SetOverride("fastapi"), None)
    assert (Backend.FASTAPI, both.flags) == (thrown.override, thrown.flags)
    assert text.count("# ") == switched.count("# ") - key.count("# ") * (key not in old.flags)


@pytest.mark.parametrize("text", ["version: 1\nroutes:\n  ? a\n", "? version\n: 1\n? routes\n"])
def test_a_layout_beyond_a_program_is_refused_not_damaged(text: str) -> None:
    with pytest.raises(FlagFileError, match=r"expected|only a person can edit"):
        edit(text, SetWeight("a", 500), None)
