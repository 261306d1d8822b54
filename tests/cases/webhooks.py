"""Webhooks, and what they are told. `{upstream}/hooks/…` is the stub, the only private address that may be asked."""

from collections.abc import Mapping
from typing import Any

from .case import Case, read, write

LIST = "/api/webhooks/"
HOOK = "{upstream}/hooks/x"
ELSEWHERE = "https://hooks.example"
TIMES = ("$.webhook.created_at", "$.webhook.updated_at")
LISTED = ("$.webhooks[*].created_at", "$.webhooks[*].updated_at")
DELIVERED = (*LISTED, "$.webhooks[*].last_delivery.created_at", "$.webhooks[*].last_delivery.finished_at")
TOOK = ("$.milliseconds",)

Dials = Mapping[str, Any]


def create(name: str, status: int, /, **fields: Any) -> Case:
    mask = TIMES if status == 201 else ()
    return write("webhooks.create_webhook", name, f"POST {LIST}", status, "admin", json=fields, mask=mask)


def hook(url: str = HOOK, *events: str, **fields: Any) -> Case:
    """Part of a setup."""
    return create("first", 201, url=url, events=list(events) or ["*"], **fields)


def update(
    name: str, status: int, path: str, fields: Mapping[str, Any], *setup: Case, query: str = "", wire: str = ""
) -> Case:
    request, mask = f"PUT {LIST}{path}", TIMES if status == 200 else ()
    key = "webhooks.update_webhook" if status < 400 or status in (400, 404, 409) else ""
    more: dict[str, Any] = {"json": fields, "setup": setup, "query": query, "mask": mask, "wire": wire}
    return write(key, name, request, status, "admin", **more)


def remove(name: str, status: int, path: str, *urls: str, query: str = "", wire: str = "W35") -> Case:
    """DELETE by an address, of webhooks that are there."""
    setup = tuple(hook(url) for url in urls)
    request = f"DELETE {LIST}{path}"
    return write("webhooks.delete_webhook", name, request, status, "admin", setup=setup, query=query, wire=wire)


def tried(name: str, status: int, fields: Mapping[str, Any], outside: Dials | None = None, *setup: Case) -> Case:
    mask = TOOK if status in (200, 502) else ()
    more: dict[str, Any] = {"json": fields, "outside": outside or {}, "setup": setup, "mask": mask}
    return write("webhooks.test_webhook", name, f"POST {LIST}test", status, "admin", **more)


def told(key: str, name: str, request: str, status: int, *setup: Case, user: str = "manager", **more: Any) -> Case:
    """A change that a webhook hears of, or not: the rows of the outbox are what it is about."""
    return write(key, f"webhook-{name}", request, status, user, setup=setup or (hook(),), **more)


def new_artist(name: str, *setup: Case, **hooks: Any) -> Case:
    """The same event, whatever the target does."""
    more: dict[str, Any] = {"json": {"name": "New & Näïve"}, "outside": {"hooks": hooks}}
    return told("artists.create_artist", name, "POST /api/artists/", 201, *setup, **more)


def refused(name: str, url: Any) -> Case:
    return create(f"url-{name}", 400, url=url, events=["*"])


def private(host: str) -> list[Case]:
    """All that can be told without asking for a name is told at once."""
    url = f"http://{host}/x"
    return [refused(host, url), tried(f"private-{host}", 400, {"url": url})]


EVERY = [
    "artist.created",
    "artist.updated",
    "artist.deleted",
    "artist.imported",
    "video.created",
    "video.updated",
    "video.deleted",
    "video.status_changed",
    "video.imported",
    "download.queued",
    "download.started",
    "download.completed",
    "download.failed",
    "playlist.synced",
    "library.organized",
    "library.indexed",
    "discovery.completed",
]
ONE = f"{ELSEWHERE}/a"
NAMED = "hooks.example/a"
MASK = "********"

LISTING = [
    read("webhooks.list_webhooks", "none", LIST, user="admin"),
    read(
        "webhooks.list_webhooks",
        "several",
        LIST,
        user="admin",
        setup=(hook(ONE, secret="s3cret"), hook(f"{ONE}/b", "artist.created", is_active=False)),
        mask=LISTED,
    ),
    read(
        "webhooks.list_webhooks",
        "newest-delivery",
        LIST,
        user="admin",
        setup=(hook(), new_artist("first"), told("videos.delete_video", "second", "DELETE /api/videos/1", 200)),
        mask=DELIVERED,
    ),
    read(
        "webhooks.list_webhooks",
        "after-a-failure",
        LIST,
        user="admin",
        setup=(hook(), new_artist("down", down=True)),
        mask=DELIVERED,
    ),
    read("webhooks.list_webhooks", "no-slash", "/api/webhooks", 308, user="admin", wire="W1"),
]

CREATING = [
    create("minimal", 201, url=ONE, events=["artist.created"]),
    create("all-fields", 201, url=f"{ONE}?b=c", events=EVERY, secret="s3cret", is_active=True),
    create("anything", 201, url=ONE, events=["*", "video.deleted", "*", ""]),
    create("inactive", 201, url=ONE, events=["*"], is_active=None),
    create("active-as-text", 201, url=ONE, events=["*"], is_active="false"),
    create("secret-is-a-number", 201, url=ONE, events=["*"], secret=5),
    create("secret-blank", 201, url=ONE, events=["*"], secret=" "),
    create("secret-unicode", 201, url=ONE, events=["*"], secret="čtvrtek 🎵"),
    create("spaces-around", 201, url=f" {ONE}\n", events=["*"]),
    create("url-unicode", 201, url="https://müsic.example/é/🎵?ü=1#ß", events=["*"]),
    create("url-port", 201, url="http://hooks.example:8080/", events=["*"]),
    create("url-no-path", 201, url="http://hooks.example", events=["*"]),
    create("url-500", 201, url=f"{ONE}/".ljust(500, "x"), events=["*"]),
    create("url-public-address", 201, url="http://93.184.216.34/x", events=["*"]),
    create("url-public-address-6", 201, url="http://[2606:2800:220:1::1]/x", events=["*"]),
    create("url-listed-address", 201, url="http://127.0.0.1/x", events=["*"]),
    create("url-name-of-this-machine", 201, url="http://localhost/x", events=["*"]),
    create("every-fault", 400, url="ftp://x", events=["artist.created", "no", "artist.*", 5], secret=["x"]),
    create("nothing-needed-is-there", 400, is_active=True),
    create("null", 400, url=None, events=None, secret=None),
    create("events-empty", 400, url=ONE, events=[]),
    create("events-blank", 400, url=ONE, events=["", " "]),
    create("events-text", 400, url=ONE, events="*"),
    create("events-object", 400, url=ONE, events={"*": True}),
    create("events-nested", 400, url=ONE, events=[["*"]]),
    create("events-101", 400, url=ONE, events=["*"] * 101),
    create("events-long", 400, url=ONE, events=["x" * 101]),
    create("events-other-case", 400, url=ONE, events=["Artist.Created"]),
    create("events-broken-surrogate", 400, url=ONE, events=["\ud800"]),
    create("secret-256", 400, url=ONE, events=["*"], secret="x" * 256),
    create("secret-broken-surrogate", 400, url=ONE, events=["*"], secret="\udfff"),
    refused("501", f"{ONE}/".ljust(501, "x")),
    refused("number", 5),
    refused("list", [ONE]),
    refused("blank", "  "),
    refused("no-scheme", "hooks.example/x"),
    refused("no-host", "http:///x"),
    refused("script", "javascript:alert(1)"),
    refused("file", "file:///etc/passwd"),
    refused("gopher", "gopher://127.0.0.1:6379/_x"),
    refused("capital-scheme", "HTTPS://hooks.example/x"),
    refused("credentials", "http://user:word@hooks.example/x"),
    refused("user", "http://hooks.example@10.0.0.1/x"),
    refused("backslash", "http://hooks.example\\@10.0.0.1/x"),
    refused("space", "http://hooks.example/a b"),
    refused("line-break", "http://hooks.example/a\r\nX: y"),
    refused("nul", "http://hooks.example/\x00"),
    refused("port-0", "http://hooks.example:0/"),
    refused("port-99999", "http://hooks.example:99999/"),
    refused("port-text", "http://hooks.example:http/"),
    refused("half-bracket", "http://[::1/x"),
    refused("broken-surrogate", "http://hooks.example/\ud83c"),
    write(
        "webhooks.create_webhook",
        "duplicate",
        f"POST {LIST}",
        409,
        "admin",
        json={"url": ONE, "events": ["*"]},
        setup=(hook(ONE),),
    ),
    write(
        "webhooks.create_webhook",
        "other-case-is-another",
        f"POST {LIST}",
        201,
        "admin",
        json={"url": f"{ELSEWHERE}/A", "events": ["*"]},
        setup=(hook(ONE),),
        mask=TIMES,
    ),
]

PRIVATE = [
    "10.0.0.1",
    "127.0.0.2",
    "127.1",
    "10.0.0.1.",
    "0",
    "0.0.0.0",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[::ffff:10.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::10.0.0.1]",
    "[2002:a00:1::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fd00::1]",
    "[ff02::1]",
]

CHANGING = [
    update("events", 200, ONE, {"events": ["video.deleted"]}, hook(ONE)),
    update("secret", 200, ONE, {"secret": "other"}, hook(ONE, secret="s3cret")),
    update("secret-mask-comes-back", 200, ONE, {"secret": MASK}, hook(ONE, secret="s3cret")),
    update("secret-removed", 200, ONE, {"secret": None}, hook(ONE, secret="s3cret")),
    update("inactive", 200, ONE, {"is_active": False}, hook(ONE)),
    update("same", 200, ONE, {"url": ONE, "events": ["*"], "is_active": True}, hook(ONE)),
    update("other-url", 200, ONE, {"url": f"{ONE}/b", "events": ["*"]}, hook(ONE)),
    update("known-and-unknown", 200, ONE, {"is_active": 0, "id": 9}, hook(ONE)),
    update("unknown-field", 400, ONE, {"name": "x"}, hook(ONE)),
    update("every-fault", 400, ONE, {"url": "http://10.0.0.1", "events": ["no"], "secret": {}}, hook(ONE)),
    update("url-null", 400, ONE, {"url": None}, hook(ONE)),
    update("events-null", 400, ONE, {"events": None}, hook(ONE)),
    update("faults-before-404", 400, ONE, {"events": 5}),
    update("duplicate", 409, ONE, {"url": f"{ONE}/b"}, hook(ONE), hook(f"{ONE}/b")),
    update("unknown", 404, ONE, {"is_active": False}),
    update("test-is-no-webhook", 404, "test", {"is_active": False}, wire="W34"),
    update("encoded", 200, "https%3A%2F%2Fhooks.example%2Fa", {"is_active": False}, hook(ONE), wire="W35"),
    update("query", 200, ONE, {"is_active": False}, hook(ONE), hook(f"{ONE}?b=c"), query="b=c", wire="W35"),
    update("no-slash-at-all", 405, "", {"is_active": False}),
]

REMOVING = [
    remove("raw", 200, ONE, ONE),
    remove("encoded", 200, "https%3A%2F%2Fhooks.example%2Fa", ONE),
    remove("encoded-in-part", 200, "https:%2F/hooks.example/%61", ONE),
    remove("one-slash", 404, f"https:/{NAMED}", ONE),
    remove("no-scheme", 404, NAMED, ONE),
    remove("trailing-slash", 200, f"{ONE}/", f"{ONE}/", ONE),
    remove("trailing-slash-missing", 404, ONE, f"{ONE}/"),
    remove("trailing-slash-too-many", 404, f"{ONE}/", ONE),
    remove("no-path", 200, ELSEWHERE, ELSEWHERE),
    remove("double-slashes", 200, f"{ELSEWHERE}//a//b//", f"{ELSEWHERE}//a//b//"),
    remove("double-slashes-count", 404, f"{ELSEWHERE}/a/b", f"{ELSEWHERE}//a//b"),
    remove("dots", 200, f"{ELSEWHERE}/./a/../b", f"{ELSEWHERE}/./a/../b"),
    remove("percent-raw", 200, f"{ELSEWHERE}/a%2Fb", f"{ELSEWHERE}/a%2Fb", f"{ELSEWHERE}/a/b"),
    remove("percent-twice", 200, f"{ELSEWHERE}/a%252Fb", f"{ELSEWHERE}/a%2Fb", f"{ELSEWHERE}/a/b"),
    remove("percent-resolved", 200, f"{ELSEWHERE}/a%2Fb", f"{ELSEWHERE}/a/b"),
    remove("percent-not-added", 404, f"{ELSEWHERE}/a b".replace(" ", "%20"), f"{ELSEWHERE}/a+b"),
    remove("odd-characters", 200, f"{ELSEWHERE}/~a;b=1,c@d:e!$&'()*+", f"{ELSEWHERE}/~a;b=1,c@d:e!$&'()*+"),
    remove("port", 200, "http://hooks.example:8080/", "http://hooks.example:8080/"),
    remove("query-raw", 200, ONE, f"{ONE}?token=a%20b&x=1", ONE, query="token=a%20b&x=1"),
    remove("query-encoded", 200, f"{ONE}%3Ftoken=a%2520b%26x=1", f"{ONE}?token=a%20b&x=1", ONE),
    remove("query-half-encoded", 200, "https%3A%2F%2Fhooks.example%2Fa", f"{ONE}?x=é", query="x=%C3%A9"),
    remove("query-unknown", 404, ONE, ONE, query="token=1"),
    remove("query-missing", 404, ONE, f"{ONE}?token=1"),
    remove("query-not-utf8", 404, ONE, ONE, query="token=%ff"),
    remove("fragment", 200, f"{ONE}%23b", f"{ONE}#b"),
    remove("unicode-host", 200, "https://m%C3%BCsic.example/%C3%A9", "https://müsic.example/é"),
    remove("unicode-host-written-out", 404, "https://xn--msic-0ra.example/a", "https://müsic.example/a"),
    remove("unicode-percent", 200, f"{ELSEWHERE}/%C3%A9", f"{ELSEWHERE}/%C3%A9"),
    remove("unicode-percent-small", 404, f"{ELSEWHERE}/%c3%a9", f"{ELSEWHERE}/%C3%A9"),
    remove("other-case", 404, ONE.upper(), ONE),
    remove("bracketed", 200, "http://[2606:2800:220:1::1]/x", "http://[2606:2800:220:1::1]/x"),
    remove("unknown", 404, "https://nobody.example/"),
    remove("long", 404, "x" * 5000),
    remove("no-utf8", 404, f"{ONE}%ff", ONE),
    remove("nul", 404, f"{ONE}%00", ONE),
    remove("line-break", 404, f"{ONE}%0A", ONE),
    remove("leading-slashes", 308, f"/{ONE}", ONE),
    remove("id", 404, "1", ONE),
    remove("test-is-no-webhook", 404, "test", wire="W34"),
    Case("unmatched:webhook-by-get", "", "GET", f"{LIST}{ONE}", 405, "admin", wire="W3"),
    Case("unmatched:webhook-by-post", "", "POST", f"{LIST}{ONE}", 405, "admin", json={"a": 1}, wire="W3"),
    Case("unmatched:webhook-test-by-get", "", "GET", f"{LIST}test", 405, "admin", wire="W34"),
    Case("unmatched:webhooks-delete", "", "DELETE", LIST, 405, "admin", wire="W3"),
    Case("unmatched:webhooks-delete-no-slash", "", "DELETE", "/api/webhooks", 404, "admin", wire="W1"),
    write(
        "webhooks.delete_webhook",
        "with-deliveries",
        f"DELETE {LIST}{HOOK}",
        200,
        "admin",
        setup=(hook(), new_artist("first")),
    ),
]

TRYING = [
    tried("answers", 200, {"url": HOOK}),
    tried("signed", 200, {"url": HOOK, "secret": "s3cret"}),
    tried("stored-secret", 200, {"url": HOOK}, None, hook(secret="s3cret")),
    tried("unsigned", 200, {"url": HOOK, "secret": None}, None, hook(secret="s3cret")),
    tried("status-204", 200, {"url": "{upstream}/hooks/status-204"}),
    tried("status-301", 502, {"url": "{upstream}/hooks/status-301"}),
    tried("status-404", 502, {"url": "{upstream}/hooks/status-404"}),
    tried("status-503", 502, {"url": "{upstream}/hooks/status-503"}),
    tried(
        "redirect-to-a-private-address", 502, {"url": HOOK}, {"hooks": {"redirect": "http://169.254.169.254/latest"}}
    ),
    tried("wrong-method-there", 502, {"url": "{upstream}/hooks"}),
    tried("no-answer", 502, {"url": HOOK}, {"hooks": {"down": True}}),
    tried("huge-answer", 200, {"url": HOOK}, {"hooks": {"huge_body": True}}),
    tried("nobody-there", 502, {"url": "http://127.0.0.1:1/x"}),
    tried("no-such-name", 502, {"url": "https://no-such-host.invalid/x"}),
    tried("private-by-name", 502, {"url": "http://ip6-allnodes.localhost.:1/"}),
    tried("url-missing", 400, {"secret": "x"}),
    tried("every-fault", 400, {"url": "file:///etc/passwd", "secret": [1]}),
]

TELLING = [
    new_artist("all"),
    new_artist("this-event", hook(HOOK, "artist.deleted", "artist.created")),
    new_artist("other-event", hook(HOOK, "artist.deleted")),
    new_artist("inactive", hook(is_active=False)),
    new_artist("two", hook(), hook("{upstream}/hooks/y", "artist.created", secret="s3cret")),
    new_artist("fails-twice", fail_first=2),
    new_artist("fails-always", status=500),
    new_artist("refuses", status=410),
    new_artist("too-many", status=429, retry_after=3600),
    new_artist("down", down=True),
    new_artist("redirects", redirect="http://10.0.0.1/"),
    new_artist("huge-answer", huge_body=True),
    new_artist("nobody-there", hook("http://127.0.0.1:1/x")),
    new_artist("status-204", hook("{upstream}/hooks/status-204")),
    told("artists.create_artist", "refused-change", "POST /api/artists/", 409, json={"name": "Björk"}),
    told("artists.update_artist", "all", "PUT /api/artists/2", 200, json={"bio": "x"}, mask=("$.artist.updated_at",)),
    told("artists.delete_artist", "all", "DELETE /api/artists/1", 200, query="force=true"),
    told("artists.delete_artist", "refused-change", "DELETE /api/artists/1", 409),
    told("videos.update_video", "all", "PUT /api/videos/6", 200, json={"title": "é"}, mask=("$.updated_at",)),
    told("videos.delete_video", "all", "DELETE /api/videos/6", 200),
    told(
        "videos.set_status",
        "all",
        "PUT /api/videos/6/status",
        200,
        json={"status": "IGNORED"},
        mask=("$.video.updated_at",),
    ),
    told(
        "videos.bulk_status",
        "all",
        "PUT /api/videos/bulk/status",
        200,
        json={"video_ids": [9, 6, 7, 999], "status": "IGNORED"},
    ),
    told(
        "videos.bulk_status",
        "no-change",
        "PUT /api/videos/bulk/status",
        200,
        hook(),
        told(
            "videos.bulk_status",
            "first",
            "PUT /api/videos/bulk/status",
            200,
            json={"video_ids": [6], "status": "FAILED"},
        ),
        json={"video_ids": [6], "status": "FAILED"},
    ),
    told("videos.bulk_delete_videos", "all", "POST /api/videos/bulk/delete", 207, json={"video_ids": [9, 6, 999]}),
    told("videos.bulk_delete_videos", "nothing", "POST /api/videos/bulk/delete", 207, json={"video_ids": [999]}),
]

CASES = [
    *LISTING,
    *CREATING,
    *[case for host in PRIVATE for case in private(host)],
    *CHANGING,
    *REMOVING,
    *TRYING,
    *TELLING,
]
