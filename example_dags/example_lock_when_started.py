"""Release meetings: every meeting whose title begins with "Release" is locked five minutes after it starts.

To copy: choose your own word and time. DingTalk reports the meetings over the event stream of the
connection's app; nothing is polled. Airflow 3 is needed, and a running triggerer. Several meetings that start
together come in one run, which locks each in its own time.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group

from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.triggers import ConferenceEventTrigger, triggering_conferences

LATECOMERS_HAVE = timedelta(minutes=5)

release_meetings = Asset(
    "dingtalk_release_meetings",
    watchers=[AssetWatcher(name="started", trigger=ConferenceEventTrigger(title_pattern="^Release"))],
)

with DAG(
    dag_id="example_lock_when_started",
    schedule=release_meetings,
    max_active_runs=100,  # each waits for minutes, and another meeting may start meanwhile
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def started(triggering_asset_events: dict | None = None) -> list[dict[str, str]]:
        """Return which meetings have started, and when."""
        return [
            {"conference_id": one["conference_id"], "start_time": one["start_time"] or one["happened_at"]}
            for one in triggering_conferences(triggering_asset_events)
        ]

    @task
    def lock_time(start_time: str) -> str:
        """Return when to lock a meeting."""
        return (datetime.fromisoformat(start_time) + LATECOMERS_HAVE).isoformat()

    @task_group
    def lock_later(conference_id: str, start_time: str) -> None:
        """Wait, in the triggerer, and lock."""
        wait = DateTimeSensorAsync(
            task_id="wait",
            target_time="{{ ti.xcom_pull(task_ids='lock_later.lock_time', map_indexes=ti.map_index) }}",
        )
        lock_time(start_time) >> wait >> LockConferenceOperator(task_id="lock", conference_id=conference_id)

    lock_later.expand_kwargs(started())
