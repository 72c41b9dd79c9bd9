"""Two DAGs that start with an event: of DingTalk's stream, and of a trigger that does nothing but fire."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_dingconf.triggers import ConferenceEventTrigger


class DatagramTrigger(BaseEventTrigger):
    """Fires for every datagram that comes to a socket: the least that a trigger can do."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "bench_events_dags.DatagramTrigger", {"address": self.address}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        came: asyncio.Queue[str] = asyncio.Queue()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                came.put_nowait(data.decode())

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Protocol, local_addr=self.address, family=socket.AF_UNIX
        )
        try:
            while True:
                yield TriggerEvent({"conference_id": await came.get()})
        finally:
            transport.close()


for dag_id, trigger in {
    "dingtalk": ConferenceEventTrigger(),
    "control": DatagramTrigger(os.environ["BENCH_ADDRESS"]),
}.items():
    asset = Asset(dag_id, watchers=[AssetWatcher(name="watcher", trigger=trigger)])
    with DAG(dag_id=dag_id, schedule=asset, max_active_runs=10_000, catchup=False):
        EmptyOperator(task_id="nothing")
