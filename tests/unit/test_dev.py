"""The entry point and the locks that it installs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / "requirements/run.lock", ROOT / "requirements/test.lock"]


def pins(lock: Path) -> dict[str, str]:
    """Version by name and marker."""
    found = re.findall(r"^([a-z0-9.-]+(?:\[[a-z,]+\])?)==(\S+)( ; [^\\]+)?", lock.read_text(), re.MULTILINE)
    return {f"{name}{marker.strip()}": pinned for name, pinned, marker in found}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_server(lock: Path) -> None:
    assert "://" not in lock.read_text()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_of_a_lock_has_its_hashes(lock: Path) -> None:
    entries = re.split(r"^(?=[a-z])", lock.read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(lock))
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_what_is_tested_is_what_runs() -> None:
    run, test = map(pins, LOCKS)
    assert {name: test.get(name) for name in run} == run


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--help"], 0), (["tset"], 2)])
def test_dev_says_how_it_is_used(arguments: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, ROOT / "dev", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == code
    assert "usage: ./dev COMMAND" in done.stdout + done.stderr
