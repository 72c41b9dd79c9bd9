"""Imports run downwards only, and a DAG file that imports the operators pays for nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import airflow_provider_dingconf

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = airflow_provider_dingconf.__name__
ROOT = Path(airflow_provider_dingconf.__file__).parent
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in ROOT.rglob("*.py")}
MAY_IMPORT = {
    "dingtalk": {"", "dingtalk"},
    "sandbox": {"", "dingtalk", "sandbox"},
}
"""What the modules of a subpackage may import of the package; "" is the version."""

NO_IO = {"airflow", "aiohttp", "requests", "urllib3", "socket", "http", "asyncio", "threading"}


def imports(file: Path) -> Iterator[str]:
    """Yield the full names of the modules a file imports, where and whyever it does; not for types alone."""
    for node in ast.walk(_without_type_checking(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return tree


def own(file: Path) -> Iterator[str]:
    """Yield the names, within the package, of the modules of the package a file imports."""
    for name in imports(file):
        if name.split(".")[0] == PACKAGE:
            parts = name.split(".")[1:]
            while (
                parts
                and ".".join(parts) not in MODULES
                and not (ROOT.joinpath(*parts) / "__init__.py").exists()
            ):
                parts.pop()
            yield ".".join(parts)
