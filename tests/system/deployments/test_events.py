"""DAGs that start when a meeting does: triggerer and scheduler, each its own process."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_api import Run
from system.airflow_processes import PATIENCE, Component, wait_for
from system.deployments.deployment import Deployment, deployed

EXAMPLE = Path(__file__).parents[3] / "example_dags" / "example_lock_when_started.py"
DATABASE_AWAY = 10
"""Seconds."""
BETWEEN = 5
"""Seconds between two outages."""
FIRST_SWEEP = 10
"""Seconds from an event to the sweep that follows it first."""
ROUNDS = 20
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, dingtalk: Sandbox) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("events")
    dags = home / "event-dags"
    shutil.copytree(Path(__file__).parent / "event_dags", dags)
    # The example as it is, for people who are in a hurry.
    text = EXAMPLE.read_text()
    assert "minutes=5" in text
    (dags / EXAMPLE.name).write_text(text.replace("minutes=5", "seconds=3"))
    settings = {
        "AIRFLOW__CORE__PARALLELISM": "4",
        # On a busy machine the wait is over when it begins, and Airflow's scheduler may take the end of the
        # deferral for that of the task that goes on after it, and fail that one.
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "5",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
    }
    with deployed(home, dingtalk, dags, **settings) as running:
        running.start("triggerer", "triggerer", "--skip-serve-logs")
        running.wait_for_dags("example_lock_when_started", "every_meeting")
        wait_for(lambda: dingtalk.streams == 1, "connection to the event stream")
        yield running


def started_by(deployment: Deployment) -> Counter[str]:
    """Return for how many runs of ``every_meeting`` each meeting is a reason."""
    found = deployment.postgres.rows(
        """
        SELECT event.extra -> 'payload' ->> 'conference_id', count(*)
        FROM asset_event event
        JOIN dagrun_asset_event link ON link.event_id = event.id
        JOIN dag_run run ON run.id = link.dag_run_id
        WHERE run.dag_id = 'every_meeting' AND event.extra -> 'payload' ->> 'conference_id' IS NOT NULL
        GROUP BY 1
        """
    )
    return Counter(dict(found))


def wait_for_runs(deployment: Deployment, meetings: list[str], seconds: float = PATIENCE) -> None:
    """Wait until each meeting has started a run."""

    def all_have() -> bool:
        deployment.start_ended_again()
        missing = {*meetings} - started_by(deployment).keys()
        assert not missing, f"{len(missing)} of {len(meetings)} have none"
        return True

    wait_for(all_have, "run for each meeting", seconds, every=0.5)


def wait_until_acknowledged(dingtalk: Sandbox) -> None:
    """Wait until Airflow has stored all events."""
    wait_for(lambda: all(event.acknowledged for event in dingtalk.events), "acknowledgement")


def test_a_meeting_that_starts_is_locked_by_the_example_some_time_after(
    deployment: Deployment, dingtalk: Sandbox
) -> None:
    dingtalk.create_conference("Lunch")
    meeting = dingtalk.create_conference("Release 1.0")
    assert dingtalk.join(meeting, "in time")
    runs = "dags/example_lock_when_started/dagRuns"
    first = wait_for(lambda: deployment.request("GET", runs)["dag_runs"], "run")[0]
    run = Run(deployment, "example_lock_when_started", first["dag_run_id"])
    assert run.end() == "success"
    events = deployment.request("GET", f"{run.path}/upstreamAssetEvents")["asset_events"]
    assert [event["extra"]["payload"]["title"] for event in events] == ["Release 1.0"]
    assert not dingtalk.join(meeting, "latecomer")
    (lock,) = dingtalk.calls_of("lock")
    assert lock.conference_id == meeting
    wait_until_acknowledged(dingtalk)


def test_of_a_burst_each_meeting_starts_a_run_once(deployment: Deployment, dingtalk: Sandbox) -> None:
    meetings = []
    for number in range(60):
        if number in (20, 40):
            dingtalk.disconnect_streams(politely=number == 20)
        meetings.append(dingtalk.create_conference(f"burst {number}"))
    wait_for_runs(deployment, meetings)
    counted = started_by(deployment)
    assert {counted[meeting] for meeting in meetings} == {1}


def test_an_event_that_comes_while_no_triggerer_runs_starts_its_run_afterwards(
    deployment: Deployment, dingtalk: Sandbox
) -> None:
    dingtalk_knows = dingtalk.events[-1].event_id
    deployment.components.pop("triggerer").stop()
    wait_for(lambda: not dingtalk.streams, "end of the connection")
    meeting = dingtalk.create_conference("while nobody listens")
    model = {"conferenceId": "again", "title": "an old one"}
    dingtalk.push_event(
        "meeting_status_change",
        {"openConfModel": model, "changeScene": "conference_created"},
        event_id=dingtalk_knows,
    )
    deployment.start_again("triggerer")
    wait_for(lambda: started_by(deployment)[meeting] == 1, "run", every=1)
    wait_until_acknowledged(dingtalk)
    assert started_by(deployment)["again"] == 0


def runner(triggerer: Component) -> int:
    """Return the process of a triggerer that runs the triggers."""
    (found,) = psutil.Process(triggerer.pid).children()
    return int(found.pid)


ENDS: dict[str, Callable[[Component], None]] = {
    "all killed": Component.kill,
    "the main process killed": lambda triggerer: os.kill(triggerer.pid, signal.SIGKILL),
    "the runner killed": lambda triggerer: os.kill(runner(triggerer), signal.SIGKILL),
    "stopped": lambda triggerer: os.kill(triggerer.pid, signal.SIGTERM),
}
"""What ends a triggerer, or the part of it from which all of it ends."""


@pytest.mark.parametrize(
    ("ends", "number"),
    [
        pytest.param(ends, number, marks=slow if number > 1 else ())
        for ends in ENDS
        for number in range(1, ROUNDS + 1)
    ],
)
def test_no_event_is_lost_when_the_triggerer_ends_while_many_come(
    deployment: Deployment, dingtalk: Sandbox, ends: str, number: int
) -> None:
    triggerer = deployment.components["triggerer"]
    meetings = []
    for each in range(150):
        meetings.append(dingtalk.create_conference(f"{ends} {number} {each}"))
        if each == 75:
            ENDS[ends](triggerer)
        time.sleep(0.02)
    wait_for(lambda: triggerer.has_ended and not dingtalk.streams, "end of the triggerer")
    triggerer.kill()
    deployment.start_again("triggerer")
    wait_for_runs(deployment, meetings)
    again = sum(started_by(deployment)[meeting] - 1 for meeting in meetings)
    print(f"{ends}, {number}: {again} of {len(meetings)} started a second run")


@pytest.mark.parametrize(
    ("away", "apart"), [(20, 4), *(pytest.param(*each, marks=slow) for each in ((40, 8), (40, 2), (300, 2)))]
)
def test_no_event_is_left_without_a_run_after_the_scheduler_was_away(
    deployment: Deployment, dingtalk: Sandbox, away: int, apart: int
) -> None:
    deployment.kill("scheduler")
    meetings = []
    for number in range(5):
        meetings.append(dingtalk.create_conference(f"no scheduler for {away}: {number}"))
        time.sleep(apart)
    time.sleep(away - 5 * apart)
    deployment.start_again("scheduler")
    wait_for_runs(deployment, meetings, 4 * away + 60)


def test_no_event_is_left_without_a_run_after_the_database_was_away_twice(
    deployment: Deployment, dingtalk: Sandbox
) -> None:
    meetings = []
    for outage in (1, 2):
        deployment.postgres.stop()
        for number in range(2 * DATABASE_AWAY):
            meetings.append(dingtalk.create_conference(f"no database {outage}: {number}"))
            time.sleep(0.5)
        deployment.postgres.start()
        deployment.start_ended_again()
        for number in range(BETWEEN):
            meetings.append(dingtalk.create_conference(f"database {outage}: {number}"))
            time.sleep(1)
    # Without its database it ends, or waits for its executor for ever, which a health check finds out.
    deployment.kill("scheduler")
    deployment.start_again("scheduler")
    began = time.monotonic()
    wait_for_runs(deployment, meetings)
    print(f"after {time.monotonic() - began:.0f} s, each of {len(meetings)} events has a run")


@slow
def test_a_sweep_that_is_due_while_the_database_is_away_comes_afterwards(
    deployment: Deployment, dingtalk: Sandbox
) -> None:
    deployment.kill("scheduler")
    waiting, overlooked = (dingtalk.create_conference(f"before the outage: {each}") for each in (1, 2))
    came = time.monotonic()
    stored = "SELECT 1 FROM asset_event WHERE extra -> 'payload' ->> 'conference_id' = %s"
    wait_for(lambda: deployment.postgres.rows(stored, overlooked), "stored event")
    deployment.postgres.stop()
    time.sleep(max(0, came + FIRST_SWEEP + 4 - time.monotonic()))
    deployment.postgres.start()
    deployment.start_again("scheduler")
    began = time.monotonic()
    for meeting in (waiting, overlooked):
        wait_for_runs(deployment, [meeting])
        print(f"run after {time.monotonic() - began:.0f} s")
