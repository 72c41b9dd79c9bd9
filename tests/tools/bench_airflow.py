"""What locks cost a real Airflow: seconds of worker slots while DingTalk throttles, and API calls.

The rows of ``make bench`` that need an Airflow with a scheduler; it may be run alone too.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from system.ui.standalone import Standalone, running_standalone

from airflow_provider_dingconf.sandbox import Sandbox

LOCKS = 100
SLOTS = 2
"""How many tasks run at once: more would measure how they wait for a small machine's processors."""

DAGS = """
from airflow.sdk import DAG, Param, task
from airflow_provider_dingconf.operators import LockConferenceOperator

with DAG("locks", schedule=None, params={"meetings": Param(type="array")}):

    @task
    def meetings(params=None):
        return params["meetings"]

    LockConferenceOperator.partial(task_id="lock").expand(conference_id=meetings())
"""


def rows() -> Iterator[tuple[str, float, float, str, float]]:
    """Yield what was measured: what it is, both sides of the ratio, their unit, and the goal."""
    with tempfile.TemporaryDirectory(prefix="dingconf-bench-") as directory, Sandbox() as sandbox:
        home, dags = Path(directory), Path(directory, "dags")
        dags.mkdir()
        (dags / "locks.py").write_text(DAGS)
        with running_standalone(home, dags, AIRFLOW__CORE__PARALLELISM=str(SLOTS)) as airflow:
            airflow.connect(json.loads(sandbox.connection_json()))
            airflow.wait_for_dags("locks")
            before = len(sandbox.calls)
            run(airflow, sandbox, "locks", [sandbox.create_conference() for _ in range(LOCKS)])
            yield "API calls / mapped locks", len(sandbox.calls) - before, LOCKS, "calls", 1.01


def run(airflow: Standalone, sandbox: Sandbox, dag_id: str, meetings: list[str]) -> None:
    """Lock meetings in a run of a DAG."""
    airflow.run(dag_id, meetings=meetings)
    assert all(sandbox.conference(meeting).locked for meeting in meetings)


if __name__ == "__main__":
    from bench import row

    for measured in rows():
        row(*measured)
