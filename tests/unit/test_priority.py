"""Work in the background steps back, and takes nobody with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastapi_app.priority import NICE

SESSION = Path("/proc/self/autogroup")
SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")
SCRIPT = """
import os, time
from fastapi_app import priority
for _ in range(20):  # the kernel takes one change in a tenth of a second, whoever makes it
    priority.step_back()
    said = open("/proc/self/autogroup").read() if os.path.exists("/proc/self/autogroup") else ""
    if f"nice {priority.NICE}" in said or os.getsid(0) != os.getpid():
        break
    time.sleep(0.15)
print(os.nice(0), said)
"""


divides = pytest.mark.skipif(
    not SWITCH.exists() or SWITCH.read_text().strip() == "0",
    reason="this kernel does not divide processors between sessions",
)


def _stepped_back(*, own_session: bool) -> str:
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, start_new_session=own_session
    ).stdout


def test_a_process_steps_back_once() -> None:
    assert _stepped_back(own_session=True).startswith(f"{max(NICE, os.nice(0))} ")


@divides
def test_a_session_of_its_own_steps_back_too() -> None:
    assert _stepped_back(own_session=True).endswith(f"nice {NICE}\n\n")


@divides
def test_the_session_of_others_stays_as_it_is() -> None:
    before = SESSION.read_text()  # nothing at all in the session of init
    nice, _, session = _stepped_back(own_session=False).partition(" ")
    assert (str(max(NICE, os.nice(0))), before.strip()) == (nice, session.strip())
    assert before == SESSION.read_text()
