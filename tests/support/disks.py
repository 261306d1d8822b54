"""A disk that is small enough to fill, in a mount namespace of one command, with which it goes."""

import os
import subprocess
from pathlib import Path

import pytest

_UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]


def with_small_disk(folder: Path, size: str, script: str) -> list[str]:
    """The command that runs this shell script where `folder` is an empty disk of that size (`512k`, `1m`)."""
    return [*_UNSHARE, "sh", "-c", f"mount -t tmpfs -o size={size} small {folder} && {{ {script}; }}"]


def _can_mount() -> bool:
    probe = with_small_disk(Path("/mnt"), "1m", "true")
    try:
        return subprocess.run(probe, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_small_disk = pytest.mark.skipif(
    not _can_mount(),
    reason="only root, or a kernel with user namespaces, may mount a disk that is small enough to fill",
)
