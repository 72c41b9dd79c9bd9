"""Release meetings: lock each of them five minutes after it starts, and never unlock it."""

from datetime import timedelta

from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group

from airflow_provider_dingconf.operators import LockConferenceOperator
from airflow_provider_dingconf.sensors import ConferenceSensor
from airflow_provider_dingconf.triggers import ConferenceEventTrigger, triggering_conferences

# To copy: choose your own word and time. It needs Airflow 3 and a running triggerer.
DELAY = timedelta(minutes=5)
meetings = Asset("releases", watchers=[AssetWatcher("new", ConferenceEventTrigger(title_pattern="^Release"))])
with DAG("example_lock_when_started", schedule=meetings, max_active_runs=100, tags=["dingtalk", "example"]):

    @task
    def started(triggering_asset_events=None):
        return [one["conference_id"] for one in triggering_conferences(triggering_asset_events)]

    @task_group
    def lock_later(meeting):
        wait = ConferenceSensor(task_id="wait", conference_id=meeting, delay=DELAY, deferrable=True)
        wait >> LockConferenceOperator(task_id="lock", conference_id=meeting)

    lock_later.expand(meeting=started())
