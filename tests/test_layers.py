"""Imports run downwards only, and a DAG file that imports the operators pays for nothing but them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

import airflow_provider_dingconf

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = airflow_provider_dingconf.__name__
ROOT = Path(airflow_provider_dingconf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

DOWNWARDS = [
    "notifications",
    "operators",
    "lock_operators",
    "call_operator",
    "meeting_operators",
    "sensors",
    "triggers",
    "event_triggers",
    "stream_producer",
    "many",
    "tasks",
    "hooks",
    "connection_hook",
    "roll_back",
    "client",
    "outcomes",
    "links",
    "metrics",
    "retry_policies",
    "compat",
    "get_provider_info",
    "dingtalk",
    "__init__",
]
"""The package's modules and subpackages, each of which may import of it only what follows."""


def imported(file: Path) -> Iterator[str]:
    """Yield the full names of what a file imports when it is imported or run; not what is for types alone."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, "a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> str:
    """Return the module or subpackage of the package that a name in it belongs to."""
    first = name.removeprefix(PACKAGE).lstrip(".").partition(".")[0]
    return first if (ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file() else "__init__"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_what_is_below_it(file: Path) -> None:
    own = layer(".".join(file.relative_to(ROOT).with_suffix("").parts))
    below = ["dingtalk", "__init__"] if own == "sandbox" else DOWNWARDS[DOWNWARDS.index(own) + 1 :]
    layers = {layer(name) for name in imported(file) if name.partition(".")[0] == PACKAGE}
    assert layers <= {*below, own}
    if own == "dingtalk":  # knows no Airflow and does no I/O
        packages = {name.partition(".")[0] for name in imported(file)}
        assert packages <= {*sys.stdlib_module_names, "tenacity", PACKAGE}
        assert not packages & {"asyncio", "http", "os", "pathlib", "socket", "threading", "time"}


def test_a_dag_file_imports_neither_the_hook_nor_an_http_library() -> None:
    trigger = f"""
import airflow.triggers.base
before |= set(sys.modules)
from {PACKAGE}.triggers import ConferenceEventTrigger
ConferenceEventTrigger(title_pattern="^a")
"""
    program = f"""
import sys
from airflow.providers.common.compat.sdk import BaseOperator
before = set(sys.modules)
import {PACKAGE}.operators
new = set(sys.modules) - before
{trigger if AIRFLOW_V_3_0_PLUS else ""}
print(*new | set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    new = set(done.stdout.splitlines()[-1].split())
    assert f"{PACKAGE}.operators" in new
    assert (f"{PACKAGE}.event_triggers" in new) is AIRFLOW_V_3_0_PLUS
    assert not new & {"aiohttp", "cryptography", "requests", "tenacity", f"{PACKAGE}.hooks"}
