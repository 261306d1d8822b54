"""What the operator configured: the command line, then `GATEWAY_*`, then `[tool.gateway]` of pyproject.toml."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """`[tool.gateway.identity]`: which session keys are which token claims. Without `claims` it is off."""

    claims: Mapping[str, str] = field(default_factory=dict)  # Flask session key -> JWT claim; one must be `sub`
    issuer: str = ""
    audience: str = ""
    lifetime_s: int = 60  # of a bearer that the gateway mints for one request
    token_cookie: str = ""  # the cookie in which the port keeps its own access token, if it has one
    kid: str = ""  # key id written into minted tokens
    key: str = ""  # signs the tokens; empty: the Flask application's SECRET_KEY
    api_key_header: str = "x-api-key"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `gateway serve` knows. Every field is also a command line option or a `GATEWAY_*` variable."""

    legacy: str = ""  # "package.module:app_or_factory"
    fastapi: str = ""
    flags: str = ""  # path of migration_flags.yaml; empty: everything is legacy
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 16  # of the legacy pool, per worker
    bridge: str = "native"  # or "a2wsgi"
    state: str = (
        ".gateway"  # directory of ledger, audit and locks; or redis://… for several hosts, and .gateway for each
    )
    secret_key: str = ""  # signs the anonymous cookie; empty: made once and kept in the state directory
    served_by: bool = False  # add Server-Timing and X-Served-By to answers
    route_once: bool = True  # hand Flask the match that the gateway already has
    trusted_hops: int = 0  # proxies in front whose X-Forwarded-* is believed, for both sides alike
    stream_request: tuple[str, ...] = ()  # endpoints that read their body while it arrives
    queue: int = 1000  # requests waiting for a legacy thread, then 503
    queue_wait_s: float = 5.0  # how long one may wait, then 503
    max_body_bytes: int = 0  # 413 above it; 0: no limit, as under gunicorn
    spool_memory_bytes: int = 67_108_864  # request bodies held in memory by one worker before they go to disk
    window_bytes: int = 262_144  # of a streamed response in flight
    spool_response_bytes: int = 8_388_608  # produced ahead of a slow reader before the thread has to wait
    send_timeout_s: float = 60.0  # a reader that takes nothing for so long is cut off
    head_timeout_s: float = 10.0  # from the first byte of a request head to its last
    body_timeout_s: float = 60.0  # without one more byte of a request body
    keep_alive_s: float = 75.0  # longer than the proxies in front usually keep theirs
    drain_s: float = 30.0  # for requests in flight after SIGTERM
    max_headers: int = 100
    max_header_bytes: int = 65_536  # request line and headers together
    log_level: str = "info"
    token: str = ""  # of the control API; empty: there is none
    ledger: bool = True  # counters, journal, shadows and rollouts; off: routing alone
    port_timeout_s: float = 30.0  # for the first byte of a ported route; then legacy answers a GET
    journal_bytes: int = 67_108_864  # what `gateway why REQUEST-ID` can look back on, per host; 0: nothing
    request_id_header: str = "x-request-id"  # of a proxy in front; without it the gateway makes an id
    shadow_concurrency: int = 4  # replays at once, per host
    shadow_queue: int = 64  # that wait for one, per worker
    shadow_body_bytes: int = 1_048_576  # of a request or an answer that is replayed
    shadow_timeout_s: float = 10.0  # for one replay
    shadow_cpu_share: float = 0.5  # of one core, for the process that replays
    shadow_memory_bytes: int = 1_073_741_824  # that the process that replays may add to its size at start
    memory_budget_bytes: int = 268_435_456  # that a worker may grow by while a rollout runs, before it is rolled back
    identity: IdentitySettings = field(default_factory=IdentitySettings)

    @property
    def redis(self) -> str:
        """Where several hosts share their state; empty: there is one host."""
        return self.state if self.state.startswith(("redis://", "rediss://", "unix://")) else ""

    @property
    def state_dir(self) -> Path:
        """What this host keeps for itself."""
        return Path(".gateway" if self.redis else self.state)

    @classmethod
    def load(
        cls,
        given: Mapping[str, Any] | None = None,
        *,
        env: Mapping[str, str] = os.environ,
        root: Path | None = None,
    ) -> "Settings":
        """Merge the three sources; `given` holds what the command line named.

        Raises ConfigError for an unknown key or a value of the wrong kind, naming where it stands.
        """
        path = (root or Path()) / "pyproject.toml"
        table = _read_table(path)
        identity = _merge(
            IdentitySettings,
            table.pop("identity", {}),
            env,
            "GATEWAY_IDENTITY_",
            f"{path} [tool.gateway.identity]",
        )
        values = _merge(cls, table, env, "GATEWAY_", f"{path} [tool.gateway]")
        values |= {k: v for k, v in (given or {}).items() if v is not None}
        settings = cls(**values, identity=IdentitySettings(**identity))
        if settings.bridge not in ("native", "a2wsgi"):
            raise ConfigError(f"bridge: expected native or a2wsgi, not {settings.bridge!r}")
        return settings


def _read_table(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None
    table: dict[str, Any] = dict(document.get("tool", {}).get("gateway", {}))
    return table


def _merge(kind: type, table: Mapping[str, Any], env: Mapping[str, str], prefix: str, where: str) -> dict[str, Any]:
    """The values of one dataclass from a TOML table and, above it, the environment."""
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind) if f.name != "identity"]
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise ConfigError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        values[name] = _coerce(value, hints[name], f"{where}: {key}")
    for name in names:
        variable = prefix + name.upper()
        if variable in env:
            values[name] = _coerce(env[variable], hints[name], variable)
    return values


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint`; strings come from the environment, typed values from TOML."""
    if isinstance(value, str):
        return _parse(value, hint, where)
    if get_args(hint) and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if getattr(hint, "__origin__", None) is not None and isinstance(value, dict):
        return {str(k): str(v) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {_name(hint)}, not {value!r}")


def _parse(text: str, hint: Any, where: str) -> Any:
    if hint is str:
        return text
    try:
        if hint is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if hint in (int, float):
            return hint(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: expected {_name(hint)}, not {text!r}") from None
    items = [item.strip() for item in text.split(",") if item.strip()]
    if hint == tuple[str, ...]:
        return tuple(items)
    if not all("=" in item for item in items):
        raise ConfigError(f"{where}: expected name=value,name=value, not {text!r}")
    return dict(item.split("=", 1) for item in items)


def _name(hint: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(
        hint, "a list or table of texts"
    )
