"""What ``make bench`` says of events: the rows of its table, as data.

A real triggerer, scheduler and dag-processor, on SQLite. How long Airflow itself takes from an event to the
run's being queued is measured beside it, with a trigger that does nothing but fire: the two are sent in the
same moment, so that both find Airflow's loops where they happen to be. By itself, the file prints its rows.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from demo import environment

from airflow_provider_dingconf.sandbox import Sandbox

Row = tuple[str, float, float, str, float | None]
"""What is compared, one side, the other, their unit, and the goal of the ratio."""

ROUNDS = 15
PAUSE = 2.35
"""Seconds between two rounds; no multiple of the second after which Airflow's loops come round."""
BURST = 1_000
ADDED = 100.0
"""Milliseconds: what may be added to Airflow's own time."""
PATIENCE = 300
_DAGS = Path(__file__).parent / "bench_dags"
_QUEUED = """
SELECT event.extra, run.queued_at FROM dag_run AS run
JOIN dagrun_asset_event AS link ON link.dag_run_id = run.id
JOIN asset_event AS event ON event.id = link.event_id WHERE run.dag_id = ?
"""
_COMPONENTS = ("dag-processor", "scheduler", "triggerer")


def rows() -> Iterator[Row]:
    """Measure, and yield the rows."""
    with (
        tempfile.TemporaryDirectory(prefix="dingconf-bench-") as home,
        Sandbox(redelivery=10.0) as sandbox,
        _airflow(Path(home), sandbox) as airflow,
    ):
        ours, airflows, added = latencies(airflow, sandbox)
        yield "event to queued run: this trigger / one that fires", ours, airflows, "ms", None
        yield "event to queued run: added / allowed", added, ADDED, "ms", 1.0
        started = burst(airflow, sandbox)
        yield f"burst of {BURST:,}: starts, plus lost or twice / sent", started, BURST, "events", 1.0


class _Airflow:
    """What is known of a running Airflow: its database, and where the other trigger listens."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._datagrams = socket.socket(type=socket.SOCK_DGRAM)
        self._port = port

    def fire(self, name: str) -> None:
        """Let the trigger that only fires do so."""
        self._datagrams.sendto(name.encode(), ("127.0.0.1", self._port))

    def close(self) -> None:
        self._datagrams.close()

    def queued(self, dag_id: str) -> list[tuple[str, float]]:
        """Return which event was queued in a run when, in seconds since the epoch; sweeps left out."""
        with closing(sqlite3.connect(self._home / "airflow.db", timeout=30)) as database:
            found = database.execute(_QUEUED, (dag_id,)).fetchall()
        named = [(json.loads(extra)["payload"]["conference_id"], queued_at) for extra, queued_at in found]
        return [
            (name, datetime.fromisoformat(queued_at).replace(tzinfo=timezone.utc).timestamp())
            for name, queued_at in named
            if name
        ]


def latencies(airflow: _Airflow, sandbox: Sandbox) -> tuple[float, float, float]:
    """Return milliseconds from an event to its run's being queued: here, with a trigger that only fires, and
    the median of the difference between the two."""
    sent: dict[str, float] = {}
    for _ in range(ROUNDS):
        name = f"meeting{len(sent)}"
        sent[name] = time.time()
        sandbox.create_conference(conference_id=name)
        airflow.fire(name)
        time.sleep(PAUSE)
    _wait_for(lambda: {*dict(airflow.queued("dingtalk"))} == {*dict(airflow.queued("control"))} == {*sent})
    ours, airflows = dict(airflow.queued("dingtalk")), dict(airflow.queued("control"))
    return (
        1000 * median(ours[name] - sent[name] for name in sent),
        1000 * median(airflows[name] - sent[name] for name in sent),
        max(0.0, 1000 * median(ours[name] - airflows[name] for name in sent)),
    )


def burst(airflow: _Airflow, sandbox: Sandbox) -> int:
    """Return how many events started a run, and how many started none or more than one beside them."""
    meetings = []
    for number in range(BURST):
        if number in (BURST // 3, 2 * BURST // 3):
            sandbox.disconnect_streams(politely=number < BURST // 2)
        meetings.append(sandbox.create_conference())

    def counted() -> Counter[str]:
        return Counter(name for name, _ in airflow.queued("dingtalk"))

    _wait_for(lambda: counted().keys() >= {*meetings}, give_up=False)
    _wait_for(lambda: all(event.acknowledged for event in sandbox.events), give_up=False)
    times = counted()
    return sum(times[meeting] or 2 for meeting in meetings)


@contextmanager
def _airflow(home: Path, sandbox: Sandbox) -> Iterator[_Airflow]:
    """Run what starts DAGs, for the length of a block, from when the event stream is there."""
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = environment(home, sandbox.url) | {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(_DAGS),
        "AIRFLOW__SCHEDULER__MAX_DAGRUNS_TO_CREATE_PER_LOOP": "100",
        "BENCH_PORT": str(port),
        "PYTHONPATH": str(_DAGS),
    }
    command = [sys.executable, "-m", "airflow"]
    log = (home / "airflow.log").open("w")
    processes = []
    airflow = _Airflow(home, port)
    try:
        subprocess.run([*command, "db", "migrate"], env=env, check=True, stdout=log, stderr=log)
        for name in _COMPONENTS:
            extra = ["--skip-serve-logs"] if name != "dag-processor" else []
            arguments = [*command, name, *extra]
            processes.append(subprocess.Popen(arguments, env=env, stdout=log, stderr=log))
        _wait_for(lambda: sandbox.streams)
        time.sleep(5.0)  # the other trigger is there by then
        yield airflow
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
        airflow.close()
        log.close()


def _wait_for(condition: Callable[[], Any], *, give_up: bool = True) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.5)
    if give_up:
        raise TimeoutError("Airflow did not do it in time.")


if __name__ == "__main__":
    from bench import row

    for each in rows():
        row(*each)
