"""What the documents say is what there is."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from fastapi_app import config
from gateway.cli import app
from gateway.control import PATHS
from gateway.metrics import METRICS
from gateway.model import Reason
from gateway.settings import IdentitySettings, Settings

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference.md").read_text()
SETTINGS = [("GATEWAY_", f.name) for f in fields(Settings) if f.name != "identity"]
SETTINGS += [("GATEWAY_IDENTITY_", f.name) for f in fields(IdentitySettings)]
FLAG_KEYS = [
    "version",
    "override",
    "rollouts",
    "routes",
    "weight",
    "shadow",
    "cohort",
    "pins",
    "ignore",
    "rollout",
    "steps",
    "every",
    "min_requests",
    "max_errors",
    "max_mismatches",
    "max_p95_ratio",
    "drill",
    "shadow_writes",
]


@pytest.mark.parametrize(("prefix", "name"), SETTINGS, ids=lambda v: v)
def test_every_setting_and_its_variable_are_in_the_reference(prefix: str, name: str) -> None:
    assert f"| `{name}` | `{prefix}{name.upper()}` |" in REFERENCE


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b[A-Z][A-Z0-9_]{5,}\b", str(config.__doc__)))))
def test_every_variable_of_the_reference_application_is_in_the_reference(name: str) -> None:
    assert name == "GATEWAY_SHADOW" or re.search(rf"^\| `{name}`\*? \|", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize("key", FLAG_KEYS)
def test_every_key_of_the_flag_file_is_in_the_reference(key: str) -> None:
    assert re.search(rf"^\| `(rollouts\.\*\.|routes\.\*\.)?{key}` \|", REFERENCE, re.MULTILINE)


def test_every_command_is_in_the_reference() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    listed = set(re.findall(r"^\| `gateway (\w+)", REFERENCE, re.MULTILINE))
    assert names == listed


def test_every_path_of_the_control_api_and_its_methods_are_in_the_reference() -> None:
    rows = re.findall(r"^\| (?:`(/_gateway/[^`]+)`)? ?\| ([A-Z]+) \|", REFERENCE, re.MULTILINE)
    listed: dict[str, set[str]] = {}
    path = ""
    for named, method in rows:
        path = named or path
        listed.setdefault(path, set()).add(method)
    assert {path.replace(":path}", "}"): set(methods) for path, methods in PATHS.items()} == listed


def test_every_metric_and_its_type_are_in_the_reference() -> None:
    listed = dict(re.findall(r"^\| `(gateway_\w+)` \| (\w+) \|", REFERENCE, re.MULTILINE))
    assert {metric.name: metric.kind for metric in METRICS} == listed


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_in_the_reference(reason: Reason) -> None:
    assert f"`{reason.value}`" in REFERENCE.split("## Reasons")[1].split("##")[0]


def test_the_newest_changelog_entry_is_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert version == newest.group(1)


@pytest.mark.parametrize("path", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda p: p.stem)
def test_a_decision_record_is_at_most_45_lines(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 45
    assert any(line.startswith("Status: ") for line in lines)


@pytest.mark.parametrize("lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda p: p.name)
def test_lock_files_have_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    for requirement in re.split(r"\n(?=\S)", text.strip()):
        assert "--hash=sha256:" in requirement


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_between_documents_lead_somewhere(page: str) -> None:
    base = (ROOT / page).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (base / target).exists(), target


def test_every_module_of_the_gateway_is_on_the_map() -> None:
    page = (ROOT / "docs/explanation.md").read_text().split("## Where things are")[1].split("##")[0]
    modules = {path.stem for path in (ROOT / "gateway").glob("*.py")} - {"__init__", "__main__"}
    modules |= {path.parent.name for path in (ROOT / "gateway").glob("*/__init__.py")}
    assert modules == {
        name for row in re.findall(r"^\|[^|]*\|([^|]*)\|", page, re.MULTILINE) for name in re.findall("`(\\w+)`", row)
    }
