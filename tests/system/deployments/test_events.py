"""DAGs that start when a meeting does: triggerer and scheduler, each its own process."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import wait_for
from system.deployments.deployment import Deployment, Run, deployed

EXAMPLE = Path(__file__).parents[3] / "example_dags" / "example_lock_when_started.py"
PAGE = 1000
AWAY = 25
"""Seconds without a scheduler: the second sweep after the last event comes later, when one is there again."""


@pytest.fixture(scope="module")
def dingtalk() -> Iterator[Sandbox]:
    """Return a DingTalk that delivers an event again soon, where it was not acknowledged."""
    with Sandbox(redelivery=10) as running:
        yield running


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
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        # On a busy machine the wait is over when it begins, and Airflow's scheduler may take the end of the
        # deferral for that of the task that goes on after it, and fail that one.
        "AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "1",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
    }
    with deployed(home, dingtalk, **settings) as running:
        start_triggerer(running)
        running.wait_for_dags("example_lock_when_started", "every_meeting")
        wait_for(lambda: dingtalk.streams == 1, "connection to the event stream")
        yield running


def start_triggerer(deployment: Deployment) -> None:
    deployment.start("triggerer", "triggerer", "--skip-serve-logs")


def runs(deployment: Deployment, dag_id: str) -> list[Run]:
    """Return the runs of a DAG so far."""
    found = deployment.request("GET", f"dags/{dag_id}/dagRuns?limit={PAGE}&order_by=run_after")
    return [Run(deployment, dag_id, run["dag_run_id"]) for run in found["dag_runs"]]


def payloads(run: Run) -> list[dict[str, Any]]:
    """Return what the asset events say that started a run."""
    events = run.deployment.request("GET", f"{run.path}/upstreamAssetEvents")["asset_events"]
    return [event["extra"]["payload"] for event in events]


def started_by(deployment: Deployment, dag_id: str = "every_meeting") -> Counter[str]:
    """Return for how many runs each meeting is a reason, and how often."""
    found = [payload["conference_id"] for run in runs(deployment, dag_id) for payload in payloads(run)]
    return Counter(conference_id for conference_id in found if conference_id)


def test_a_meeting_that_starts_is_locked_by_the_example_some_time_after(
    deployment: Deployment, dingtalk: Sandbox
) -> None:
    dingtalk.create_conference("Lunch")
    meeting = dingtalk.create_conference("Release 1.0")
    assert dingtalk.join(meeting, "in time")
    run = wait_for(lambda: next((run for run in runs(deployment, "example_lock_when_started")), None), "run")
    assert run.end() == "success"
    assert [payload["title"] for payload in payloads(run)] == ["Release 1.0"]
    assert not dingtalk.join(meeting, "latecomer")
    (lock,) = dingtalk.calls_of("lock")
    assert lock.conference_id == meeting
    wait_for(lambda: all(event.acknowledged for event in dingtalk.events), "acknowledgement")


def test_of_a_burst_each_meeting_starts_a_run_once(deployment: Deployment, dingtalk: Sandbox) -> None:
    meetings = []
    for number in range(60):
        if number in (20, 40):
            dingtalk.disconnect_streams(politely=number == 20)
        meetings.append(dingtalk.create_conference(f"burst {number}"))

    def all_have_started() -> bool:
        return started_by(deployment).keys() >= {*meetings}

    wait_for(all_have_started, "run for each meeting", every=1)
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
    start_triggerer(deployment)
    wait_for(lambda: started_by(deployment)[meeting] == 1, "run", every=1)
    wait_for(lambda: all(event.acknowledged for event in dingtalk.events), "acknowledgement")
    assert started_by(deployment)["again"] == 0


@pytest.mark.parametrize("ends", ["the main process killed", "all killed", "stopped"])
def test_no_event_is_lost_when_the_triggerer_ends_while_many_come(
    deployment: Deployment, dingtalk: Sandbox, ends: str
) -> None:
    triggerer = deployment.components["triggerer"]
    meetings = []
    for number in range(150):
        meetings.append(dingtalk.create_conference(f"{ends} {number}"))
        if number == 75:
            if ends == "all killed":
                deployment.kill("triggerer")
            else:
                os.kill(triggerer.pid, signal.SIGKILL if "main" in ends else signal.SIGTERM)
        time.sleep(0.02)
    wait_for(lambda: not dingtalk.streams, "end of the connection")
    triggerer.kill()
    start_triggerer(deployment)
    wait_for(lambda: started_by(deployment).keys() >= {*meetings}, "run for each meeting", every=1)


def test_no_event_is_left_without_a_run_after_the_scheduler_was_away(
    deployment: Deployment, dingtalk: Sandbox
) -> None:
    deployment.kill("scheduler")
    meetings = []
    for number in range(5):
        meetings.append(dingtalk.create_conference(f"no scheduler {number}"))
        time.sleep(2)
    time.sleep(AWAY - 10)
    deployment.start("scheduler", "scheduler", "--skip-serve-logs")
    wait_for(lambda: started_by(deployment).keys() >= {*meetings}, "run for each meeting", 300, every=1)
