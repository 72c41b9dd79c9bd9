"""A DAG that starts for every meeting, and does nothing."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_provider_dingconf.triggers import ConferenceEventTrigger

every_meeting = Asset(
    "every_meeting", watchers=[AssetWatcher(name="started", trigger=ConferenceEventTrigger())]
)

with DAG(dag_id="every_meeting", schedule=every_meeting, max_active_runs=1000, catchup=False):
    EmptyOperator(task_id="nothing")
