"""Every request that both applications must answer alike.

`CASES` drives Flask alone, the port behind the gateway, and both mixed. For each case a runner

1. puts back the same database and files: `legacy_flask.seed.seed(app, "small", demo=True)`, with BCRYPT_ROUNDS=4,
   FFMPEG naming no file and no REDIS_URL;
2. signs in, with PASSWORDS, the users that the case and its `setup` name (once per snapshot is enough) and keeps these
   cookies, whatever later answers set;
3. sends the cases of `setup`, then executes the statements of `sql`;
4. sends the case: `sent_headers`, `target` and the body as they stand. `{etag}` and `{last_modified}` in a header are
   those of the last answer of `setup`; `{session}` and `{csrf_token}` are the user's cookies, which a `Cookie` header
   replaces; `{upstream}` in a target, a JSON body or `sql` is the address of the stub upstream. Dials of `outside` are
   set from the request until nothing that it began still runs.

The status must be `expect_status`. All else must be equal on both sides: the answer, the rows (times, tokens and salts
of the request aside) and the files under LIBRARY_PATH and DATA_PATH/thumbnails. `mask` names what may differ in the
answer, in the syntax of `gateway.compare`, in addition to MASK.
"""

from collections import Counter

from . import (
    artists,
    auth,
    discovery,
    downloads,
    jobs,
    library,
    media,
    pages,
    playlists,
    protocol,
    settings,
    spotify,
    system,
    users,
    videos,
    webhooks,
)
from .auth import PASSWORDS
from .case import HOST, ORIGIN, Case
from .variants import REQUIRED, variants

MASK = ("header.date", "cookie.mv_session.value", "cookie.csrf_token.value")

BLUEPRINTS = (
    auth,
    users,
    artists,
    videos,
    discovery,
    spotify,
    playlists,
    library,
    settings,
    webhooks,
    system,
    downloads,
    jobs,
    media,
    pages,
    protocol,
)
WRITTEN = [case for blueprint in BLUEPRINTS for case in blueprint.CASES]
CASES = [*WRITTEN, *variants(WRITTEN)]

repeated = [name for name, times in Counter(case.id for case in CASES).items() if times > 1]
if repeated:
    raise ValueError(f"case ids are not unique: {repeated}")

__all__ = ["CASES", "HOST", "MASK", "ORIGIN", "PASSWORDS", "REQUIRED", "Case"]
