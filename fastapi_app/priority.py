"""Who waits for an answer comes first: workers and all that they begin step back."""

import os
from contextlib import suppress
from pathlib import Path

NICE = 15


def step_back() -> None:
    """This process, its children to come, and its session if it leads one.

    Linux divides the processors between sessions before it looks at processes: see "autogroup" in sched(7).
    """
    os.nice(max(0, NICE - os.nice(0)))
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # this system does not, or somebody else has done so in the same tenth of a second
            Path("/proc/self/autogroup").write_text(str(NICE))
