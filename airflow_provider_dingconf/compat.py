"""What ``common-compat`` does not have on every supported Airflow, or not in every version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_1_PLUS
from asgiref.sync import sync_to_async

if TYPE_CHECKING or AIRFLOW_V_3_1_PLUS:
    from airflow.sdk.log import mask_secret
elif AIRFLOW_V_3_0_PLUS:
    from airflow.sdk.execution_time.secrets_masker import mask_secret
else:
    from airflow.utils.log.secrets_masker import mask_secret

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseHook, BaseOperator, Connection


async def get_async_connection(conn_id: str, hook: BaseHook) -> Connection:
    """Return a connection as a hook finds it, without blocking the loop: ``common-compat``'s, from 1.17."""
    if hasattr(hook, "aget_connection"):
        return await hook.aget_connection(conn_id)
    return await sync_to_async(hook.get_connection, thread_sensitive=False)(conn_id)


def empty_operator() -> type[BaseOperator]:
    """Return Airflow's ``EmptyOperator``; imported when it is needed."""
    if TYPE_CHECKING or AIRFLOW_V_3_0_PLUS:
        from airflow.providers.standard.operators.empty import EmptyOperator
    else:
        from airflow.operators.empty import EmptyOperator
    return EmptyOperator  # noqa: AIR312 - the old place is for Airflow 2 alone


__all__ = ["empty_operator", "get_async_connection", "mask_secret"]
