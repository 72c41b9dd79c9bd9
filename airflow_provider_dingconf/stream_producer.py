"""The event stream as Airflow 3.3 shares it among watchers, with a word when an event was stored."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.shared_stream import SharedStreamProducer

from airflow_provider_dingconf.client.event_stream import Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence

    from airflow.triggers.shared_stream import AdvanceItem

    from airflow_provider_dingconf.client.event_stream import Delivery


class EventsProducer(SharedStreamProducer):
    """Holds the event stream of one connection, and acknowledges events once Airflow has stored them.

    :param dingtalk_conn_id: the Airflow connection.
    """

    def __init__(self, dingtalk_conn_id: str) -> None:
        self._watch = Watch(dingtalk_conn_id)
        # More than a watcher's queue holds would fail the watcher.
        most = conf.getint("triggerer", "shared_stream_subscriber_queue_size", fallback=1024)
        self._room = asyncio.Semaphore(max(1, most // 2))

    async def open_stream(self) -> AsyncIterator[tuple[Delivery, Delivery]]:
        """Yield what comes."""
        async for delivery in self._watch.deliveries():
            await self._room.acquire()
            yield delivery, delivery

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Acknowledge events that all watchers are done with; one that failed is to come again."""
        for item in batch:
            delivery: Delivery = item.broker_payload
            self._room.release()
            if item.outcome.failed or not item.outcome.acked:
                delivery.refused()
            else:
                delivery.taken()

    def get_advance_lane(self, broker_payload: Any) -> Hashable:
        """Let no event wait for another to be stored."""
        return id(broker_payload)

    async def aclose(self) -> None:
        """Leave the stream."""
        self._watch.close()
