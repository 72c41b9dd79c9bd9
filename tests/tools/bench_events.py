"""How long an event takes until it has started a run: a row of ``make bench``.

How long Airflow itself takes is measured beside it, with a trigger that does nothing but fire. Both are sent in
the same moment, because Airflow's loops then take equally long to come round.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from statistics import median

from measuring import Row, report

from airflow_provider_dingconf.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parents[1]))

from system.airflow_processes import wait_for
from system.ui.standalone import running_standalone

DAGS = Path(__file__).parent / "bench_dags"
ROUNDS = 15
PAUSE = 2.35
"""Seconds between two rounds; no multiple of the second after which Airflow's loops come round."""
ADDED = 100.0
"""Milliseconds that may be added to Airflow's own."""
QUEUED = """
SELECT event.extra, run.queued_at FROM dag_run AS run
JOIN dagrun_asset_event AS link ON link.dag_run_id = run.id
JOIN asset_event AS event ON event.id = link.event_id WHERE run.dag_id = ?
"""


def all_queued(home: Path, dag_id: str) -> dict[str, float]:
    """Return when the run of each event was queued, in seconds since the epoch, or nothing if one is missing."""
    with closing(sqlite3.connect(home / "airflow.db", timeout=30)) as database:
        found = database.execute(QUEUED, (dag_id,)).fetchall()
    times = {
        json.loads(extra)["payload"]["conference_id"]: datetime.fromisoformat(queued_at).timestamp()
        for extra, queued_at in found
    }
    times.pop(None, None)  # a sweep
    return times if len(times) == ROUNDS else {}


def rows() -> Iterator[Row]:
    """Measure, and yield the row."""
    with (
        tempfile.TemporaryDirectory(prefix="dingconf-bench-") as directory,
        Sandbox() as sandbox,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        home, address = Path(directory), f"{directory}/datagrams"
        settings = {
            "AIRFLOW_CONN_DINGTALK_DEFAULT": sandbox.connection_json(),
            "BENCH_ADDRESS": address,
            "PYTHONPATH": os.pathsep.join([str(DAGS), os.environ.get("PYTHONPATH", "")]),
        }
        with running_standalone(home, DAGS, **settings):
            wait_for(lambda: sandbox.streams and Path(address).exists(), "start of the triggers")
            for number in range(ROUNDS):
                sandbox.create_conference(conference_id=f"m-{number}")
                datagrams.sendto(f"m-{number}".encode(), address)
                time.sleep(PAUSE)
            ours, airflows = (
                wait_for(lambda dag_id=dag_id: all_queued(home, dag_id), f"runs of {dag_id}")
                for dag_id in ("dingtalk", "control")
            )
            added = median(ours[name] - airflows[name] for name in ours)
            yield Row("event to queued run: added / allowed", max(0.0, 1000 * added), ADDED, "ms", 1.0)


if __name__ == "__main__":
    report(rows())
