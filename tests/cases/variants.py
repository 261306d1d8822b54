"""Cases that follow from others: nobody signed in, too low a role, another site, HEAD, OPTIONS, broken bodies."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .case import SAFE_METHODS, Case, write

ROLES = ("readonly", "user", "manager", "admin")  # low to high

# The lowest role that may use the endpoint; "login": everybody who is signed in; "": everybody.
REQUIRED = {
    "auth.login": "",
    "auth.first_run": "",
    "auth.logout": "login",
    "auth.check": "",
    "auth.session_info": "login",
    "auth.change_password": "login",
    "users.list_users": "admin",
    "users.create_user": "admin",
    "users.me": "login",
    "users.set_role": "admin",
    "users.revoke_sessions": "login",
    "artists.list_artists": "readonly",
    "artists.create_artist": "user",
    "artists.advanced_search": "readonly",
    "artists.suggestions": "readonly",
    "artists.get_artist": "readonly",
    "artists.get_artist_detailed": "readonly",
    "artists.update_artist": "user",
    "artists.delete_artist": "manager",
    "artists.artist_thumbnail": "readonly",
    "artists.artist_thumbnail_size": "readonly",
    "artists.upload_artist_thumbnail": "user",
    "videos.list_videos": "readonly",
    "videos.search_videos": "readonly",
    "videos.get_video": "readonly",
    "videos.update_video": "user",
    "videos.delete_video": "manager",
    "videos.set_status": "user",
    "videos.bulk_status": "user",
    "videos.bulk_delete_videos": "manager",
    "videos.stream_video": "readonly",
    "videos.video_thumbnail": "readonly",
    "library.library_stats": "readonly",
    "library.list_genres": "readonly",
    "library.videos_by_genre": "readonly",
    "settings.get_settings": "admin",
    "settings.get_setting": "admin",
    "settings.put_setting": "admin",
    "settings.put_bulk": "admin",
    "artists.refresh_artist_metadata": "user",
    "videos.import_youtube": "user",
    "videos.refresh_video_metadata": "user",
    "discovery.discover_artists": "user",
    "discovery.preview_artist": "user",
    "discovery.import_artist": "user",
    "discovery.search_youtube": "user",
    "discovery.discover_for_artist": "user",
    "discovery.discover_all": "manager",
    "spotify.status": "readonly",
    "spotify.search_artists": "user",
    "spotify.import_artist": "user",
    "spotify.import_playlist": "user",
    "playlists.list_monitors": "readonly",
    "playlists.create_monitor": "user",
    "playlists.delete_monitor": "user",
    "playlists.sync_monitor": "user",
    "settings.scheduler_status": "readonly",
    "settings.scheduler_trigger": "manager",
    "library.scan_downloads": "user",
    "library.preview_organize": "user",
    "library.organize_all": "manager",
    "library.index_library": "manager",
    "webhooks.list_webhooks": "admin",
    "webhooks.create_webhook": "admin",
    "webhooks.update_webhook": "admin",
    "webhooks.delete_webhook": "admin",
    "webhooks.test_webhook": "admin",
    "system.service_status": "admin",
    "system.disk_usage": "admin",
    "system.recent_logs": "admin",
    "system.restart": "admin",
    "system.health": "",
    "system.health_status": "",
    "videos.download_video": "user",
    "videos.bulk_download": "user",
    "videos.start_transcode": "user",
    "videos.transcode_status": "readonly",
    "downloads.download_queue": "readonly",
    "downloads.download_history": "readonly",
    "downloads.set_priority": "user",
    "downloads.pause_download": "user",
    "downloads.resume_download": "user",
    "downloads.cancel_download": "user",
    "downloads.retry_download": "user",
    "downloads.upload_cookies": "manager",
    "downloads.ytdlp_status": "readonly",
    "jobs.list_jobs": "readonly",
    "jobs.list_queues": "readonly",
    "jobs.get_job": "readonly",
    "jobs.start_job": "manager",
    "jobs.cancel_job": "user",
    "pages.dashboard": "",  # who is not signed in is sent to sign in
    "pages.artists": "",
    "pages.artist": "",
    "pages.videos": "",
    "pages.video": "",
    "pages.downloads": "",
    "pages.discover": "",
    "pages.playlists": "",
    "pages.settings": "",
    "pages.system": "",
    "pages.login": "",
    "pages.static": "",
}

JSON_ROUTES = (
    ("auth.login", "POST /auth/login", "anonymous"),
    ("auth.first_run", "POST /auth/first-run", "anonymous"),
    ("auth.change_password", "PUT /auth/password", "user"),
    ("users.create_user", "POST /api/users/", "admin"),
    ("users.set_role", "PUT /api/users/4/role", "admin"),
    ("artists.create_artist", "POST /api/artists/", "user"),
    ("artists.update_artist", "PUT /api/artists/2", "user"),
    ("videos.update_video", "PUT /api/videos/6", "user"),
    ("videos.import_youtube", "POST /api/videos/import-from-youtube", "user"),
    ("discovery.import_artist", "POST /api/discovery/artists/import", "user"),
    ("videos.set_status", "PUT /api/videos/6/status", "user"),
    ("videos.bulk_status", "PUT /api/videos/bulk/status", "user"),
    ("videos.bulk_delete_videos", "POST /api/videos/bulk/delete", "manager"),
    ("videos.bulk_download", "POST /api/videos/bulk/download", "user"),
    ("downloads.set_priority", "PUT /api/downloads/3/priority", "user"),
    ("spotify.import_artist", "POST /api/spotify/artists/import", "user"),
    ("spotify.import_playlist", "POST /api/spotify/playlists/import", "user"),
    ("playlists.create_monitor", "POST /api/youtube/playlists/", "user"),
    ("settings.put_setting", "PUT /api/settings/schedule_time", "admin"),
    ("settings.put_bulk", "PUT /api/settings/bulk", "admin"),
    ("webhooks.create_webhook", "POST /api/webhooks/", "admin"),
    ("webhooks.update_webhook", "PUT /api/webhooks/https://hooks.example/a", "admin"),
    ("webhooks.test_webhook", "POST /api/webhooks/test", "admin"),
    ("jobs.start_job", "POST /api/jobs/", "manager"),
)
JSON = {"Content-Type": "application/json"}
BROKEN_BODIES = (
    # name, status, headers, body, row
    ("json-malformed", 400, JSON, b'{"name": ', "W6"),
    ("json-missing", 400, JSON, b"", "W6"),
    ("json-no-utf8", 400, JSON, b'{"name": "\xff"}', "W6"),
    ("json-too-deep", 400, JSON, b"[" * 100_000, "W6"),
    ("json-text-plain", 415, {"Content-Type": "text/plain"}, b'{"name": "x"}', "W7"),
    ("json-without-type", 415, {}, b'{"name": "x"}', "W7"),
    ("json-empty-object", 400, JSON, b"{}", "W8"),
    ("json-list", 400, JSON, b'[{"name": "x"}]', "W9"),
    ("json-null", 400, JSON, b"null", "W9"),
    ("json-text", 400, JSON, b'"name"', "W9"),
)


def variants(cases: list[Case]) -> Iterator[Case]:
    for case in examples(cases):
        yield from denied(case)
        if case.method == "GET":
            yield replace(case, id=f"{case.key}:head", method="HEAD", wire="W5")
        yield Case(f"{case.key}:options", case.key, "OPTIONS", case.path, 200, wire="W4")
    yield from broken_bodies()


def examples(cases: Iterable[Case]) -> Iterator[Case]:
    """The first successful case of each endpoint."""
    seen = set()
    for case in cases:
        if case.key not in seen and case.key and case.successful:
            seen.add(case.key)
            yield case


def denied(case: Case) -> Iterator[Case]:
    required = REQUIRED[case.key]
    alone = replace(case, setup=(), sql=(), mask=())
    if not required:
        return
    yield replace(alone, id=f"{case.key}:nobody-signed-in", user="anonymous", expect_status=401)
    if required in ROLES[1:]:
        lower = ROLES[ROLES.index(required) - 1]
        yield replace(alone, id=f"{case.key}:as-{lower}", user=lower, expect_status=403)
    if case.method not in SAFE_METHODS:
        yield replace(alone, id=f"{case.key}:without-origin", headers={**case.headers, "Origin": ""}, expect_status=403)
        foreign = {**case.headers, "Origin": "https://evil.test"}
        yield replace(alone, id=f"{case.key}:from-elsewhere", headers=foreign, expect_status=403)


def broken_bodies() -> Iterator[Case]:
    for key, request, user in JSON_ROUTES:
        for name, status, headers, body, row in BROKEN_BODIES:
            yield write(key, name, request, status, user, headers=headers, body=body, wire=row)
