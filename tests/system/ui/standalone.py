"""``airflow standalone`` in a throw-away home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from system.airflow_api import Airflow
from system.airflow_processes import BIN, free_port, running

STARTING = 600
"""Seconds: Airflow starts several processes at once."""


@contextmanager
def running_standalone(home: Path, dags: Path, **settings: str) -> Iterator[Airflow]:
    """Run ``airflow standalone`` for a block.

    :param home: a directory to throw away.
    :param dags: the DAGs' directory.
    :param settings: more environment variables.
    """
    own = {
        # A small machine has to run a browser as well.
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
    }
    airflow = Airflow(home, dags, own | settings)

    def healthy() -> bool:
        parts = airflow.request("GET", "monitor/health")
        return all(parts[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "triggerer"))

    with running("standalone", [str(BIN / "airflow"), "standalone"], airflow.env, airflow.logs) as component:
        component.wait_for_address(f"{airflow.url}/api/v2/version", seconds=STARTING)
        component.wait_for(healthy, f"healthy Airflow at {airflow.url}", seconds=STARTING)
        yield airflow
