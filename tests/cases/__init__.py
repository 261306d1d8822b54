"""Every request that both applications must answer alike.

`CASES` drives Flask alone, the port behind the gateway, and both mixed. For each case a runner

1. puts back the same database and files: `legacy_flask.seed.seed(app, "small", demo=True)`, with BCRYPT_ROUNDS=4,
   FFMPEG naming no file and no REDIS_URL;
2. signs in, with PASSWORDS, the users that the case and its `setup` name (once per snapshot is enough) and keeps these
   cookies, whatever later answers set;
3. sends the cases of `setup`, then executes the statements of `sql`;
4. sends the case: `sent_headers`, `target` and the body as they stand. `{etag}` and `{last_modified}` in a header are
   those of the last answer of `setup`; `{session}` and `{csrf_token}` are the user's cookies, which a `Cookie` header
   replaces.

The status must be `expect_status`. All else, the rows (ROW_MASK aside) and the files under LIBRARY_PATH and under
DATA_PATH/thumbnails must be equal on both sides; `mask` names what may differ, in the syntax of `gateway.compare`, in
addition to MASK.
"""

from collections import Counter

from . import artists, auth, library, protocol, settings, system, users, videos
from .auth import PASSWORDS
from .case import HOST, ORIGIN, Case
from .variants import REQUIRED, variants

MASK = ("header.date", "cookie.mv_session.value", "cookie.csrf_token.value")

# Columns that differ by nature: times of the request, random tokens and salts, who answered.
ROW_MASK = {
    "settings": {"updated_at"},
    "users": {"password_hash", "last_login_at", "created_at", "updated_at"},
    "user_sessions": {"token_hash", "created_at", "expires_at", "last_activity_at", "revoked_at", "user_agent"},
    "login_attempts": {"window_start"},
    "cache": {"expires_at"},
    "audit_log": {"created_at", "served_by"},
    "artists": {"created_at", "updated_at"},
    "videos": {"updated_at"},
}

BLUEPRINTS = (auth, users, artists, videos, library, settings, system, protocol)
WRITTEN = [case for blueprint in BLUEPRINTS for case in blueprint.CASES]
CASES = [*WRITTEN, *variants(WRITTEN)]

repeated = [name for name, times in Counter(case.id for case in CASES).items() if times > 1]
if repeated:
    raise ValueError(f"case ids are not unique: {repeated}")

__all__ = ["CASES", "HOST", "MASK", "ORIGIN", "PASSWORDS", "REQUIRED", "ROW_MASK", "Case"]
