"""What the deployments run. Each run says in its conf which meetings it is about."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference, Param, task, task_group

from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.notifications import UnlockConferenceNotifier
from airflow_provider_dingconf.operators import LockConferenceOperator, conference_lock

CONFERENCE = {"conference_id": Param(type="string")}
LONGEST = 300
"""Seconds for which work waits for the word that it is done."""


def work_until_done(directory: str) -> None:
    """Write the process id, then wait until the test says that the work is done."""
    (Path(directory) / "pid.new").write_text(str(os.getpid()))
    (Path(directory) / "pid.new").rename(Path(directory) / "pid")
    until = time.monotonic() + LONGEST
    while not (Path(directory) / "done").exists():
        if time.monotonic() > until:
            raise TimeoutError("nobody said that the work is done")
        time.sleep(0.1)


WORK = CONFERENCE | {"directory": Param(type="string")}


@task
def work(directory: str) -> None:
    work_until_done(directory)


with DAG("locked_section", schedule=None, params=WORK), conference_lock("{{ params.conference_id }}"):
    work("{{ params.directory }}")

with (
    DAG(
        "notified_section",
        schedule=None,
        params=WORK,
        dagrun_timeout=timedelta(hours=1),
        on_failure_callback=UnlockConferenceNotifier(conference_id="{{ params.conference_id }}"),
    ),
    conference_lock("{{ params.conference_id }}", retries=0),
):
    work("{{ params.directory }}")

with (
    DAG(
        "section_with_a_deadline",
        schedule=None,
        params=WORK,
        deadline=DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(hours=1),
            callback=AsyncCallback(
                UnlockConferenceNotifier, {"conference_id": "{{ dag_run.conf['conference_id'] }}"}
            ),
        ),
    ),
    conference_lock("{{ params.conference_id }}"),
):
    work("{{ params.directory }}")

with DAG("locked_block", schedule=None, params=WORK):

    @task(task_id="work", retries=1, retry_delay=timedelta(seconds=1))
    def work_in_block(conference_id: str, directory: str) -> None:
        with DingTalkConferenceHook().locked(conference_id):
            work_until_done(directory)

    work_in_block("{{ params.conference_id }}", "{{ params.directory }}")

with DAG("lock", schedule=None, params=CONFERENCE):
    LockConferenceOperator(task_id="lock", conference_id="{{ params.conference_id }}")

with DAG("retried_lock", schedule=None, params=CONFERENCE):
    LockConferenceOperator(
        task_id="lock",
        conference_id="{{ params.conference_id }}",
        max_seconds=5,
        retries=1,
        retry_delay=timedelta(hours=1),
    )

MANY = {"conference_ids": Param(type="array")}


@task
def conferences(params: dict[str, list[str]] | None = None) -> list[str]:
    """Return the meetings to lock."""
    assert params
    return [*params["conference_ids"]]


with DAG("section_of_many", schedule=None, params=MANY | WORK), conference_lock(conferences()):
    work("{{ params.directory }}")

with DAG("many_sections", schedule=None, params=MANY, max_active_tasks=100):

    @task(retries=2, retry_delay=timedelta(seconds=1))
    def work_a_while() -> None:
        time.sleep(2)

    @task_group
    def section(conference_id: str) -> None:
        """Work while one of the meetings is locked."""
        with conference_lock(conference_id):
            work_a_while()

    section.expand(conference_id=conferences())
