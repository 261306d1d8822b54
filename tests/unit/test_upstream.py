"""The stub upstream speaks like the services it stands for, and misbehaves as it is told to."""

import base64
import http.client
import json
import socket
from io import BytesIO
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from PIL import Image

from tests.support.upstreams import Upstream
from tests.upstream import KEY, SPOTIFY_ID, SPOTIFY_SECRET
from tests.upstream.catalogue import ARTISTS, artist_in, artist_named, slug, songs

Answer = tuple[int, dict[str, str], bytes]


def call(upstream: Upstream, target: str, *, method: str = "GET", body: str = "", **headers: str) -> Answer:
    """Underscores in the names of headers are hyphens."""
    connection = http.client.HTTPConnection(urlsplit(upstream.url).netloc, timeout=10)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def get(upstream: Upstream, target: str, **headers: str) -> Any:
    status, _, content = call(upstream, target, **headers)
    assert status == 200, content
    return json.loads(content)


def youtube(upstream: Upstream, path: str, **query: object) -> Any:
    return get(upstream, f"/youtube{path}?{urlencode({'key': KEY, **query})}")


# --- the catalogue


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("Daft Punk", ("Daft Punk", "")),
        ("daft punk official music video", ("Daft Punk", "")),
        ('"Sigur Rós" video', ("Sigur Rós", "")),
        ("sigur ros", ("Sigur Rós", "")),
        ("Daft Punk - Night Train", ("Daft Punk", "night-train")),
        ("AC/DC Hollow Crown (Official Video)", ("AC/DC", "hollow-crown")),
        ("Some Garage Band - First Song", ("Some Garage Band", "first-song")),
        ("椎名林檎", ("椎名林檎", "")),
        ("official video", ("", "")),
        ("", ("", "")),
    ],
)
def test_a_query_means_an_artist_and_perhaps_a_title(query: str, found: tuple[str, str]) -> None:
    assert artist_in(query) == found


@pytest.mark.parametrize("name", ARTISTS)
def test_the_slug_of_a_known_artist_means_the_artist(name: str) -> None:
    assert artist_named(slug(name)) == name


def test_all_services_know_the_same_artist(upstream: Upstream) -> None:
    token = {"Authorization": "Bearer demo-token-0"}
    entity = get(upstream, "/imvdb/entity/bjork", IMVDB_APP_KEY=KEY)
    artist = get(upstream, "/spotify/artists/bjork", **token)
    info = get(upstream, f"/lastfm?method=artist.getInfo&artist=Bj%C3%B6rk&api_key={KEY}&format=json")["artist"]
    page = get(upstream, "/wikipedia?action=query&list=search&srsearch=Bj%C3%B6rk&format=json", User_Agent="tests")
    title = page["query"]["search"][0]["title"]
    assert {entity["name"], artist["name"], info["name"], title} == {"Björk"}
    assert artist["genres"] == [tag["name"] for tag in info["tags"]["tag"]] == ["electronic", "art pop"]
    assert entity["bio"] in info["bio"]["summary"]


# --- YouTube


def test_a_search_finds_official_videos_among_noise(upstream: Upstream) -> None:
    found = youtube(upstream, "/search", q="Guns N' Roses official video", maxResults=50)["items"]
    titles = [item["snippet"]["title"] for item in found]
    assert titles[0].startswith("Guns N&#39; Roses - ")  # escaped, as YouTube does it
    assert sum("(Official" in title or "[Official" in title for title in titles) >= 8
    assert any("Cover by" in title for title in titles)
    assert all(len(item["id"]["videoId"]) == 11 for item in found)


def test_the_details_of_a_video_are_those_of_the_search(upstream: Upstream) -> None:
    found = youtube(upstream, "/search", q="Radiohead", maxResults=3)["items"]
    ids = ",".join(item["id"]["videoId"] for item in found)
    videos = youtube(upstream, "/videos", id=ids, part="snippet,contentDetails,statistics")["items"]
    assert [video["id"] for video in videos] == ids.split(",")
    assert [video["snippet"]["title"] for video in videos] == [item["snippet"]["title"] for item in found]
    first = songs("Radiohead")[0]
    minutes, seconds = divmod(first.seconds, 60)
    assert videos[0]["contentDetails"]["duration"] in (f"PT{minutes}M{seconds}S", f"PT{minutes}M")
    assert videos[0]["statistics"]["viewCount"].isdecimal()


def test_videos_that_are_private_or_gone_are_left_out(upstream: Upstream) -> None:
    videos = youtube(upstream, "/videos", id="none1234567,loB0kmz_0MM,priv1234567,short")["items"]
    assert [video["snippet"]["title"] for video in videos] == ["Björk - Jóga (Official Video)"]


def test_a_long_playlist_has_three_pages_with_holes(upstream: Upstream) -> None:
    items, token = [], ""
    for pages in range(1, 4):
        page = youtube(upstream, "/playlistItems", playlistId="PLlong", maxResults=50, pageToken=token)
        items += page["items"]
        token = page.get("nextPageToken", "")
        assert bool(token) == (pages < 3)
    assert len(items) == page["pageInfo"]["totalResults"] == 120
    assert [item["snippet"]["position"] for item in items] == list(range(120))
    kinds = {item["status"]["privacyStatus"] for item in items}
    assert kinds == {"public", "private", "privacyStatusUnspecified"}
    assert youtube(upstream, "/playlists", id="PLlong,PLnone,PLpriv")["items"][0]["contentDetails"]["itemCount"] == 120


@pytest.mark.parametrize(("key", "status", "reason"), [("wrong", 400, "badRequest"), ("", 403, "forbidden")])
def test_youtube_refuses_a_wrong_and_a_missing_key(upstream: Upstream, key: str, status: int, reason: str) -> None:
    answered, _, content = call(upstream, f"/youtube/search?q=x&key={key}")
    assert (answered, json.loads(content)["error"]["errors"][0]["reason"]) == (status, reason)


# --- the others


def test_imvdb_tells_sources_and_directors_of_a_video(upstream: Upstream) -> None:
    found = get(upstream, "/imvdb/search/videos?q=Massive+Attack", IMVDB_APP_KEY=KEY)["results"]
    assert len(found) == len(songs("Massive Attack"))
    video = get(upstream, f"/imvdb/video/{found[0]['id']}?include=sources,credits", IMVDB_APP_KEY=KEY)
    primary = [source["source_data"] for source in video["sources"] if source["is_primary"]]
    assert primary == [songs("Massive Attack")[0].youtube_id]
    assert video["directors"][0]["entity_name"] == songs("Massive Attack")[0].director


@pytest.mark.parametrize(
    ("path", "key", "status"), [("entity/none", KEY, 404), ("video/1", KEY, 404), ("video/1", "", 401)]
)
def test_imvdb_knows_no_such_thing_or_no_such_key(upstream: Upstream, path: str, key: str, status: int) -> None:
    assert call(upstream, f"/imvdb/{path}", IMVDB_APP_KEY=key)[0] == status


def test_spotify_gives_a_token_for_the_right_client_only(upstream: Upstream) -> None:
    def ask(secret: str) -> Answer:
        client = base64.b64encode(f"{SPOTIFY_ID}:{secret}".encode()).decode()
        form = {"Content_Type": "application/x-www-form-urlencoded", "Authorization": f"Basic {client}"}
        return call(upstream, "/spotify-token", method="POST", body="grant_type=client_credentials", **form)

    status, _, content = ask(SPOTIFY_SECRET)
    token = json.loads(content)
    assert (status, token["token_type"], token["expires_in"]) == (200, "Bearer", 3600)
    assert get(upstream, "/spotify/search?type=artist&q=ABBA", Authorization=f"Bearer {token['access_token']}")
    assert ask("wrong")[0] == 400
    assert call(upstream, "/spotify/search?type=artist&q=ABBA", Authorization="Bearer old")[0] == 401


def test_a_playlist_of_spotify_is_followed_by_next(upstream: Upstream) -> None:
    target, items = "/spotify/playlists/long/tracks?limit=100&fields=items(track),next", []
    while target:
        page = get(upstream, target, Authorization="Bearer demo-token-0")
        assert set(page) == {"items", "next"}
        items += page["items"]
        target = (page["next"] or "").removeprefix(upstream.url)
    assert len(items) == 120
    assert any(item["track"] is None for item in items)
    assert any(item["is_local"] and item["track"]["id"] is None for item in items)


@pytest.mark.parametrize(
    ("query", "code"),
    [("artist=nothing+at+all&api_key=demo-key", 6), ("artist=Cher&api_key=wrong", 10), ("api_key=demo-key", 6)],
)
def test_errors_of_lastfm_come_in_a_200_answer(upstream: Upstream, query: str, code: int) -> None:
    assert get(upstream, f"/lastfm?method=artist.getInfo&format=json&{query}")["error"] == code


def test_wikipedia_wants_to_know_who_asks(upstream: Upstream) -> None:
    target = "/wikipedia?action=query&prop=pageimages&titles=ABBA&pithumbsize=300&format=json"
    assert call(upstream, target)[0] == 403
    (page,) = get(upstream, target, User_Agent="tests/1")["query"]["pages"].values()
    status, _, content = call(upstream, page["thumbnail"]["source"].removeprefix(upstream.url))
    assert status == 200
    assert Image.open(BytesIO(content)).size == (300, 300)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif"])
def test_pictures_have_the_size_and_the_format_of_their_name(upstream: Upstream, kind: str) -> None:
    _, headers, content = call(upstream, f"/images/daft-punk-64x48.{kind}")
    picture = Image.open(BytesIO(content))
    assert picture.size == (64, 48)
    assert headers["content-type"] == Image.MIME[picture.format or ""]


def test_a_bomb_is_small_and_says_that_it_is_large(upstream: Upstream) -> None:
    content = call(upstream, "/images/bomb.jpg")[2]
    assert len(content) < 100_000
    width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])  # of a PNG
    assert width * height == 400_000_000


def test_hooks_take_everything_and_say_what_their_name_says(upstream: Upstream) -> None:
    assert call(upstream, "/hooks/any", method="POST", body="{}")[0] == 200
    assert call(upstream, "/hooks/status-410", method="POST", body="{}")[0] == 410


# --- dials and calls

ENTITY = "/imvdb/entity/bjork"


def ask_entity(upstream: Upstream) -> Answer:
    return call(upstream, ENTITY, IMVDB_APP_KEY=KEY)


def test_a_status_with_retry_after(upstream: Upstream) -> None:
    upstream.dial({"imvdb": {"status": 429, "retry_after": 7}})
    status, headers, _ = ask_entity(upstream)
    assert (status, headers["retry-after"]) == (429, "7")
    upstream.dial({})
    assert ask_entity(upstream)[0] == 200


def test_the_first_calls_fail_and_then_all_is_well(upstream: Upstream) -> None:
    upstream.dial({"imvdb": {"fail_first": 2}})
    assert [ask_entity(upstream)[0] for _ in range(3)] == [503, 503, 200]
    upstream.dial({"imvdb": {"fail_first": 1, "status": 401}})
    assert [ask_entity(upstream)[0] for _ in range(2)] == [401, 200]


def test_the_quota_is_used_up(upstream: Upstream) -> None:
    upstream.dial({"youtube": {"quota": True}})
    status, _, content = call(upstream, f"/youtube/search?q=x&key={KEY}")
    assert (status, json.loads(content)["error"]["errors"][0]["reason"]) == (403, "quotaExceeded")


@pytest.mark.parametrize(("dial", "code"), [(29, 29), (True, 500)])
def test_an_error_in_a_200_answer(upstream: Upstream, dial: object, code: int) -> None:
    upstream.dial({"lastfm": {"error_in_200": dial}})
    assert get(upstream, f"/lastfm?method=artist.getInfo&artist=Cher&api_key={KEY}&format=json")["error"] == code


@pytest.mark.parametrize("dial", ["malformed", "empty"])
def test_an_answer_that_is_no_json(upstream: Upstream, dial: str) -> None:
    upstream.dial({"imvdb": {dial: True}})
    status, _, content = ask_entity(upstream)
    assert status == 200
    with pytest.raises(ValueError):
        json.loads(content)


def test_wrong_types_and_a_wrong_shape_of_the_true_answer(upstream: Upstream) -> None:
    true = json.loads(ask_entity(upstream)[2])
    upstream.dial({"imvdb": {"wrong_types": True}})
    wrong = json.loads(ask_entity(upstream)[2])
    assert wrong.keys() == true.keys()
    assert not any(type(wrong[key]) is type(true[key]) for key in true)
    upstream.dial({"imvdb": {"wrong_shape": True}})
    assert json.loads(ask_entity(upstream)[2]) == [true]


def test_a_huge_body_has_no_length_and_32_megabytes(upstream: Upstream) -> None:
    upstream.dial({"imvdb": {"huge_body": True}})
    _, headers, content = ask_entity(upstream)
    assert "content-length" not in headers
    assert len(content) > 32_000_000
    assert json.loads(content) == {}


def test_a_redirect_leads_where_the_dial_says(upstream: Upstream) -> None:
    upstream.dial({"images": {"redirect": "http://10.0.0.1/"}})
    status, headers, _ = call(upstream, "/images/x.jpg")
    assert (status, headers["location"]) == (302, "http://10.0.0.1/")


def test_a_service_that_is_down_closes_the_connection(upstream: Upstream) -> None:
    upstream.dial({"imvdb": {"down": True}})
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask_entity(upstream)
    assert len(upstream.calls("imvdb")) == 1


def test_a_slow_body_begins_at_once(upstream: Upstream) -> None:
    upstream.dial({"imvdb": {"slow_body_s": 60}})
    with socket.create_connection(("127.0.0.1", urlsplit(upstream.url).port or 0), timeout=10) as connection:
        connection.sendall(f"GET {ENTITY} HTTP/1.1\r\nHost: x\r\nIMVDB-APP-KEY: {KEY}\r\n\r\n".encode())
        got = b""
        while b"\r\n\r\n{" not in got:
            got += connection.recv(65_536)
        length = int(got.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert 0 < len(got.split(b"\r\n\r\n", 1)[1]) < length


def test_dials_act_only_on_the_calls_that_are_meant(upstream: Upstream) -> None:
    upstream.dial({"spotify": {"status": 500, "only": "offset=100"}})
    headers = {"Authorization": "Bearer demo-token-0"}
    assert call(upstream, "/spotify/playlists/long/tracks", **headers)[0] == 200
    assert call(upstream, "/spotify/playlists/long/tracks?offset=100", **headers)[0] == 500


def test_the_controls_by_http(upstream: Upstream) -> None:
    dials = {"hooks": {"status": 418}}
    assert call(upstream, "/_dials", method="PUT", body=json.dumps(dials))[0] == 200
    assert call(upstream, "/hooks/a?b=c", method="POST", body="told", X_Mark="1")[0] == 418
    (seen,) = get(upstream, "/_calls")
    assert {key: seen[key] for key in ("service", "method", "path", "query", "body")} == {
        "service": "hooks",
        "method": "POST",
        "path": "/a",
        "query": {"b": "c"},
        "body": "told",
    }
    assert seen["headers"]["x-mark"] == "1"
    assert call(upstream, "/_calls", method="DELETE")[0] == 200
    assert get(upstream, "/_calls") == []
    status, _, content = call(upstream, "/_dials", method="PUT", body='{"hooks": {"statsu": 1}}')
    assert (status, content) == (400, b"no such dial: hooks.statsu\n")
    assert get(upstream, "/_dials") == dials
