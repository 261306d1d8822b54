"""The web pages call only what is there, and the report of their calls is the truth."""

import pytest

from tests.support.ui_calls import REPORT, Answered, Call, answered, markdown, of_script, of_template, report, unknown

ROWS = report()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.call.method} {row.call.path}")
def test_every_call_of_a_page_is_answered(row: Answered) -> None:
    assert row.rule, f"{', '.join(row.pages)}: Flask has no rule for it"


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if not row.key.startswith("pages.")],
    ids=lambda row: f"{row.call.method} {row.call.path}",
)
def test_every_call_of_the_api_has_a_twin(row: Answered) -> None:
    assert row.port, f"{row.key}: FastAPI does not answer it"


def test_the_report_is_current() -> None:
    assert REPORT.read_text() == markdown(ROWS), "python -m tests.support.ui_calls --write"


def test_a_call_that_no_rule_takes_is_found() -> None:
    assert answered(Call("/api/artists/{}/dance", "POST"), ["x.js"]).rule == ""
    assert answered(Call("/api/artists/{}", "PATCH"), ["x.js"]).rule == ""
    assert answered(Call("/api/artists/{}", "PUT"), ["x.js"]).key == "artists.update_artist"


def test_calls_are_read_from_scripts() -> None:
    source = """
const here = `/api/videos/${id}`;
      api("PUT", here, {title});
      api("DELETE", `${here}${file ? "?delete_file=true" : ""}`);
      api("POST", `${here}/download`);
      // a remark about "/api/nothing"
      await api("PUT", `/api/artists/${artist.id}/settings`, {name: "/api is no call"});
      api("GET", `/api/jobs/?${query({...wanted, per_page: 20})}`);
      image.src = `/api/artists/${id}/thumbnail/small`;
      new WebSocket(`wss://${location.host}/ws/jobs`);
      location.assign("/login?next=x");
    """
    assert set(of_script(source)) == {
        Call("/api/videos/{}", "GET"),  # the constant
        Call("/api/videos/{}", "PUT"),
        Call("/api/videos/{}", "DELETE"),
        Call("/api/videos/{}/download", "POST"),
        Call("/api/artists/{}/settings", "PUT"),
        Call("/api/jobs/", "GET"),
        Call("/api/artists/{}/thumbnail/small", "GET"),
        Call("/ws/jobs", "WS"),
        Call("/login", "GET"),
        Call("/api is no call", "GET"),
    }


@pytest.mark.parametrize("call", ['api(method, "/api/jobs/")', 'api("GET", address)', "api('GET', '/api/jobs/')"])
def test_a_call_that_cannot_be_read_is_refused(call: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        list(of_script(call))


def test_calls_are_read_from_templates() -> None:
    source = """{% set menu = [("/artists", "Artists")] %}<a href="/artist/{{ id }}#top">x</a>
      <form method="post" action="/auth/login">"""
    assert set(of_template(source)) == {Call("/artists", "GET"), Call("/artist/{}", "GET"), Call("/auth/login", "POST")}


def test_a_request_that_no_page_is_known_to_make_is_told() -> None:
    sent = [("GET", "/auth/check"), ("PUT", "/api/users/7/role"), ("PUT", "/api/users/7/name")]
    assert unknown(sent) == [("PUT", "/api/users/7/name")]
