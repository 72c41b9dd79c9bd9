"""What the newest Airflow and Python warn of."""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path

import airflow_provider_dingconf
from system.airflow_processes import environment, output_of


def test_the_provider_uses_nothing_deprecated(tmp_path: Path) -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(airflow_provider_dingconf.__path__, "airflow_provider_dingconf.")
        if not module.name.endswith("__main__")
    ]
    program = f"import sys; sys.stderr = sys.stdout; import {', '.join(names)}"
    printed = output_of([sys.executable, "-W", "always", "-c", program], environment(tmp_path))
    warnings = [line for line in printed.splitlines() if "Warning" in line]
    assert not [line for line in warnings if "airflow_provider_dingconf" in line]
