"""A lock over each kind of connection."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_dingconf.operators import LockConferenceOperator

KINDS = ("internal", "unified", "third_party", "static_token", "unpermitted", "wrong", "behind_a_proxy")

with DAG("every_connection", schedule=None, params={"conference_id": Param(type="string")}):
    for kind in KINDS:
        LockConferenceOperator(
            task_id=kind,
            conference_id="{{ params.conference_id }}",
            dingtalk_conn_id=kind,
            max_attempts=2,
        )
