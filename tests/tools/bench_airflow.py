"""What locks cost a real Airflow: seconds of worker slots while DingTalk throttles, and API calls.

The rows of ``make bench`` that need an Airflow with a scheduler; it may be run alone too.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from system.ui.standalone import Standalone, running_standalone

from airflow_provider_dingconf.sandbox import Fault, Sandbox

THROTTLED = "Forbidden.AccessDenied.QpmLimitForAppkeyAndApi"
THROTTLED_LOCKS, RETRY_AFTER = 20, 30
LOCKS = 100
SLOTS = 2
"""How many tasks run at once: more would measure how they wait for a small machine's processors."""

DAGS = """
from airflow.sdk import DAG, Param, task
from airflow_provider_dingconf.operators import LockConferenceOperator

for deferrable in (False, True):
    with DAG(f"locks_{deferrable}", schedule=None, params={"meetings": Param(type="array")}):

        @task
        def meetings(params=None):
            return params["meetings"]

        LockConferenceOperator.partial(task_id="lock", deferrable=deferrable).expand(conference_id=meetings())
"""

RECORD = """
CREATE TABLE seen (task TEXT, state TEXT, at REAL);
CREATE TRIGGER see AFTER UPDATE OF state ON task_instance WHEN OLD.state IS NOT NEW.state BEGIN
    INSERT INTO seen VALUES (NEW.id, NEW.state, (julianday('now') - 2440587.5) * 86400);
END;
"""
"""The database writes down itself when a task enters a state: Airflow counts the time in the triggerer in."""

HELD = """
SELECT sum(until - at) FROM (
    SELECT task, seen.state AS was, at, lead(at) OVER (PARTITION BY task ORDER BY at) AS until FROM seen
) JOIN task_instance ON id = task WHERE was = 'running' AND dag_id = ? AND task_id = 'lock'
"""


def rows() -> Iterator[tuple[str, float, float, str, float]]:
    """Yield what was measured: what it is, both sides of the ratio, their unit, and the goal."""
    with tempfile.TemporaryDirectory(prefix="dingconf-bench-") as directory, Sandbox() as sandbox:
        home, dags = Path(directory), Path(directory, "dags")
        dags.mkdir()
        (dags / "locks.py").write_text(DAGS)
        with running_standalone(home, dags, AIRFLOW__CORE__PARALLELISM=str(SLOTS)) as airflow:
            airflow.connect(json.loads(sandbox.connection_json()))
            airflow.wait_for_dags("locks_False", "locks_True")
            with sqlite3.connect(home / "airflow.db", timeout=60) as database:
                database.executescript(RECORD)

            waiting, deferred = (throttled(airflow, sandbox, f"locks_{defer}") for defer in (False, True))
            held = (slot_seconds(home, dag_id) for dag_id in ("locks_True", "locks_False"))
            assert waiting == deferred == THROTTLED_LOCKS * 2
            yield f"slots of {THROTTLED_LOCKS} throttled locks: deferrable / not", *held, "s", 0.1

            before = len(sandbox.calls)
            run(airflow, sandbox, "locks_False", [sandbox.create_conference() for _ in range(LOCKS)])
            yield "API calls / mapped locks", len(sandbox.calls) - before, LOCKS, "calls", 1.01


def throttled(airflow: Standalone, sandbox: Sandbox, dag_id: str) -> int:
    """Run locks each of which DingTalk refuses once, and return how many calls they made."""
    meetings = [sandbox.create_conference() for _ in range(THROTTLED_LOCKS)]
    refusal = {"code": THROTTLED, "headers": {"Retry-After": str(RETRY_AFTER)}, "times": 1}
    for meeting in meetings:
        sandbox.fail(Fault(call="lock", path=meeting, **refusal))
    run(airflow, sandbox, dag_id, meetings)
    return sum(call.conference_id in meetings for call in sandbox.calls_of("lock"))


def run(airflow: Standalone, sandbox: Sandbox, dag_id: str, meetings: list[str]) -> None:
    """Lock meetings in a run of a DAG."""
    airflow.run(dag_id, meetings=meetings)
    assert all(sandbox.conference(meeting).locked for meeting in meetings)


def slot_seconds(home: Path, dag_id: str) -> float:
    """Return how long a DAG's locks were in the state ``running``, in seconds in all."""
    with sqlite3.connect(home / "airflow.db", timeout=60) as database:
        ((seconds,),) = database.execute(HELD, (dag_id,))
    return float(seconds)


if __name__ == "__main__":
    from bench import row

    for measured in rows():
        row(*measured)
