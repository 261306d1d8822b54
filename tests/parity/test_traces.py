"""What the comparison of rows and files rests on: whatever was written is seen, and undone."""

import pytest

from tests.support.world import World


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO login_attempts (`key`, window_start, count) VALUES ('k', '2026-01-01 00:00:00.000000', 1)",
        "UPDATE artists SET bio = 'else' WHERE id = 1",
        "DELETE FROM settings",
    ],
    ids=lambda statement: statement.split()[0],
)
def test_rows(world: World, statement: str) -> None:
    world.restore()
    before = world.snapshot.traces()
    world.execute([statement])
    assert before.rows != world.snapshot.traces().rows
    assert before.files == world.snapshot.traces().files
    world.restore()
    assert before == world.snapshot.traces()


def test_files_even_with_other_bytes_of_the_same_number(world: World) -> None:
    world.restore()
    before = world.snapshot.traces()
    path = world.live / min(before.files)
    content = path.read_bytes()
    for other in (content[::-1], content[1:] + content[:1]):
        path.write_bytes(other)
        seen = world.snapshot.traces()
        assert (before.rows, before.files) != (seen.rows, seen.files)
    world.restore()
    assert before == world.snapshot.traces()
    assert content == path.read_bytes()
