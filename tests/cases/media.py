"""Transcoding, where there is no ffmpeg. In the small library 1 is an mp4, 2 a webm, 3 an mkv, 4 has lost its file."""

from typing import Any

from .case import Case, read, write
from .jobs import ACTIVE, LONG_AGO, job

MADE = '{"file_path": "Björk/Björk - Jóga.mp4", "file_size": 5, "source": "Björk/Björk - Jóga.mkv"}'


def begun(name: str, status: int, video_id: int | str = 3, **more: Any) -> Case:
    request = f"POST /api/videos/{video_id}/transcode"
    return write("videos.start_transcode", name, request, status, "user", **more)


def asked(name: str, *sql: str, status: int = 200, video_id: int | str = 3, **more: Any) -> Case:
    path = f"/api/videos/{video_id}/transcode/status"
    return read("videos.transcode_status", name, path, status, sql=sql, **more)


def transcode(status: str, job_id: str = "j", /, video_id: int = 3, **columns: Any) -> str:
    return job(job_id, status, "transcode", target=f"video:{video_id}", **columns)


CASES = [
    begun("running", 202, sql=(transcode("running", ACTIVE),)),
    begun("queued", 202, sql=(transcode("queued", ACTIVE),)),
    begun("done-already", 200, 1, sql=(transcode("completed", video_id=1, result=MADE),)),
    begun(
        "done-already-and-replaced", 400, 1, sql=(transcode("completed", video_id=1, result='{"file_path": "x.mp4"}'),)
    ),
    begun("done-for-another", 400, 1, sql=(transcode("completed", video_id=2, result=MADE),)),
    begun("mp4", 400, 1),
    begun("webm", 400, 2),
    begun("another-runs", 503, sql=(transcode("running", ACTIVE, video_id=6),)),
    begun("ffmpeg-missing", 503),
    begun("forgotten", 503, sql=(transcode("running", ACTIVE, updated_at=LONG_AGO),)),
    begun("lost-file", 404, 4),
    begun("outside", 404, 5),
    begun("no-file", 404, 7),
    begun("unknown", 404, 999),
    begun("too-large", 404, 10**20),
    begun("name-instead-of-number", 404, "abc", wire="W2"),
    begun("slash-behind", 404, "3/transcode/", wire="W3"),
    write("videos.start_transcode", "get", "GET /api/videos/3/transcode", 405, "user", wire="W3"),
    asked("none"),
    asked("processing", transcode("running", ACTIVE)),
    asked("queued", transcode("queued", ACTIVE, progress=0, message="")),
    asked("completed", transcode("completed", result=MADE, progress=100)),
    asked("failed", transcode("failed", error="The disk is full")),
    asked("cancelled", transcode("cancelled")),
    asked("forgotten", transcode("running", ACTIVE, updated_at=LONG_AGO)),
    asked("latest", transcode("failed", "old"), transcode("completed", "new", created_at="2026-01-02 12:00:00")),
    asked("of-another", transcode("completed", video_id=33)),
    asked("no-file", video_id=7),
    asked("unknown", status=404, video_id=999),
    asked("name-instead-of-number", status=404, video_id="abc", wire="W2"),
    read("videos.stream_video", "start-of-a-file", "/api/videos/1/stream", query="start=5"),
    read("videos.stream_video", "start-without-ffmpeg", "/api/videos/3/stream", 503, query="start=5"),
    read("videos.stream_video", "start-abc", "/api/videos/3/stream", 503, query="start=abc", wire="W11"),
]
