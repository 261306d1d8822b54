"""Blocking calls in coroutines, found in small packages written for the purpose."""

import json
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.errors import ConfigError
from gateway.lint import lint

ROOT = Path(__file__).parents[2]


def findings(folder: Path, **modules: str) -> list[str]:
    """What is found in a package of these modules, without its folder."""
    package = folder / "shop"
    package.mkdir()
    for name, source in modules.items():
        (package / f"{name}.py").write_text(source)
    return [str(finding).removeprefix(f"{package}/") for finding in lint(package)]


@pytest.mark.parametrize(
    ("imports", "call", "name"),
    [
        ("import time", "time.sleep(1)", "time.sleep"),
        ("from time import sleep", "sleep(1)", "time.sleep"),
        ("import time as clock", "clock.sleep(1)", "time.sleep"),
        ("import requests", "requests.get('https://a.test')", "requests.get"),
        ("import requests", "requests.Session().get('https://a.test')", "requests.Session"),
        ("import subprocess", "subprocess.run(['ls'])", "subprocess.run"),
        ("import os.path", "os.path.exists('a')", "os.path.exists"),
        ("from sqlalchemy.orm import Session", "Session()", "sqlalchemy.orm.Session"),
        ("from redis import Redis", "Redis()", "redis.Redis"),
        ("from pathlib import Path", "Path('a').read_text()", ".read_text"),
        ("", "open('a')", "open"),
        ("", "print([open(name) for name in 'ab'])", "open"),
        ("", "request.state.path.mkdir()", ".mkdir"),
    ],
)
def test_a_coroutine_that_blocks_is_found(tmp_path: Path, imports: str, call: str, name: str) -> None:
    source = f"{imports}\nasync def handler(request):\n    if request:\n        {call}\n"

    assert f"views.py:4: handler calls {name}" in findings(tmp_path, views=source)


@pytest.mark.parametrize(
    "body",
    [
        "await sleep(1)",
        "await to_thread(open, 'a')",
        "await to_thread(helper)",
        "await to_thread(lambda: open('a'))",
        "await store.unlink('key')",
        "import asyncio; await asyncio.sleep(1)",
        "def later(): open('a')",
        "name.replace('a', 'b')",
        "open('a')  # blocks: once, at the start",
    ],
)
def test_what_does_not_block_is_left_alone(tmp_path: Path, body: str) -> None:
    source = (
        f"from asyncio import sleep, to_thread\ndef helper(): open('a')\nasync def handler(name, store):\n    {body}\n"
    )

    assert findings(tmp_path, views=source) == []


def test_a_helper_is_followed_into_other_modules(tmp_path: Path) -> None:
    views = "from . import files\nasync def handler():\n    files.save('a')\n"
    files = "from .disk import write as put\ndef save(name):\n    put(name)\n"
    disk = "def write(name):\n    with open(name, 'w') as file:\n        file.write('x')\n"

    (finding,) = findings(tmp_path, views=views, files=files, disk=disk)
    assert finding == "views.py:3: handler calls files.save, which calls disk.write, which calls open"


def test_a_folder_within_the_package_is_followed_too(tmp_path: Path) -> None:
    inner = tmp_path / "shop/inner"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("from .deep import read\n")
    (inner / "deep.py").write_text("def read():\n    open('a')\n")
    (tmp_path / "shop/views.py").write_text("from .inner.deep import read\nasync def handler():\n    read()\n")

    (finding,) = lint(tmp_path / "shop")
    assert finding.chain == ("deep.read", "open")


def test_methods_of_the_own_class_are_followed(tmp_path: Path) -> None:
    source = """
class Store:
    async def save(self):
        self._write()

    def _write(self):
        open('a')
"""
    assert findings(tmp_path, store=source) == ["store.py:4: Store.save calls store.Store._write, which calls open"]


def test_functions_that_call_each_other_end(tmp_path: Path) -> None:
    source = "def a(): b()\ndef b():\n    a()\n    open('x')\nasync def handler():\n    a()\n"

    assert findings(tmp_path, views=source) == [
        "views.py:6: handler calls views.a, which calls views.b, which calls open"
    ]


def test_a_coroutine_inside_a_function_is_found_and_one_that_is_only_called_does_not_block(tmp_path: Path) -> None:
    source = """
def make():
    async def handler():
        open('a')
    return handler

async def outer():
    make()
"""
    assert findings(tmp_path, views=source) == ["views.py:4: make.handler calls open"]


def test_the_command_lists_what_was_found_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings(tmp_path, views="async def handler():\n    open('a')\n")

    with pytest.raises(SystemExit) as ended:
        main(["lint", str(tmp_path / "shop"), "--json"])
    assert ended.value.code == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["line"], finding["coroutine"], finding["chain"]) == (2, "handler", ["open"])

    with pytest.raises(SystemExit):
        main(["lint", str(tmp_path / "shop")])
    assert capsys.readouterr().out.endswith("views.py:2: handler calls open\n")


def test_the_reference_application_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lint", str(ROOT / "fastapi_app")])

    assert (ended.value.code, capsys.readouterr().out) == (0, "")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        lint(tmp_path / "nothing")
    (tmp_path / "views.py").write_text("def (:\n")
    with pytest.raises(ConfigError, match=r"views\.py:1: no Python"):
        lint(tmp_path)
