"""What one case is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOST = "music.test"  # what every request says in `Host`, wherever the server listens: it shows in redirects
ORIGIN = f"http://{HOST}"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

File = tuple[str, bytes, str]  # name, content, content type


@dataclass(frozen=True, slots=True)
class Case:
    """One request and the status that it must get; everything else about the answer is compared between the sides.

    The path is sent as it stands, percent signs and all. Of `json`, `data` (a form), `files` (multipart, together with
    `data`) and `body` at most one kind is given; with `body` goes a Content-Type in `headers`, unless its absence
    is the point. `user` signs in before anything else happens, as do the users of `setup`; they keep those cookies.
    """

    id: str
    key: str  # the endpoint; "" where no rule matches
    method: str
    path: str
    expect_status: int
    user: str = "anonymous"  # or a name from PASSWORDS
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    data: Mapping[str, str] | None = None
    files: Mapping[str, File] | None = field(default=None, repr=False)
    body: bytes | None = field(default=None, repr=False)
    setup: tuple["Case", ...] = ()
    sql: tuple[str, ...] = ()
    log: bytes | None = field(default=None, repr=False)  # content of the log file; None: there is none
    outside: Mapping[str, Any] = field(default_factory=dict)  # dials by service, see tests.upstream
    mask: tuple[str, ...] = ()
    wire: str = ""  # the row of the wire contract that this pins, "W12"

    @property
    def target(self) -> str:
        """Path and query, as in the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def sent_headers(self) -> dict[str, str]:
        """Host, and like a browser the Origin of unsafe requests; an empty header is left out."""
        usual = {"Host": HOST}
        if self.method not in SAFE_METHODS and self.user != "anonymous":
            usual["Origin"] = ORIGIN
        return {name: value for name, value in (usual | dict(self.headers)).items() if value}

    @property
    def successful(self) -> bool:
        return self.expect_status < 400


def read(key: str, name: str, path: str, status: int = 200, user: str = "readonly", **more: Any) -> Case:
    """A GET."""
    return Case(f"{key}:{name}", key, "GET", path, status, user, **more)


def write(key: str, name: str, request: str, status: int, user: str, **more: Any) -> Case:
    """An unsafe request; `request` is method and path, "PUT /api/videos/1"."""
    method, path = request.split(" ", 1)
    return Case(f"{key}:{name}", key, method, path, status, user, **more)
