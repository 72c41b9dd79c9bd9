"""``EventsProducer``: the event stream that Airflow 3.3 shares among the watchers of a connection."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.shared_stream import SharedStreamProducer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence

    from airflow.triggers.shared_stream import AdvanceItem

    from airflow_provider_dingconf.client.event_stream import Delivery, Watch


@dataclass(eq=False)
class SharedDelivery:
    """A delivery on its way through the triggers of a connection."""

    delivery: Delivery
    handing_on: int = 0  # how many triggers have yielded an event that Airflow has not yet queued
    handed_on_at: float = float("-inf")  # when Airflow last queued one, by the monotonic clock


class EventsProducer(SharedStreamProducer):
    """Holds the event stream of one connection, and acknowledges events once Airflow has stored them.

    When a triggerer ends, Airflow also reports events as accepted that it never stores: events that it has
    not queued, or whose report comes too soon to be true. The producer refuses those events, and DingTalk
    delivers them again.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        # Airflow fails a watcher whose queue overflows.
        most = conf.getint("triggerer", "shared_stream_subscriber_queue_size", fallback=1024)
        self._room = asyncio.Semaphore(max(1, most // 2))

    async def open_stream(self) -> AsyncIterator[tuple[SharedDelivery, SharedDelivery]]:
        """Yield the deliveries."""
        async for delivery in self._watch.deliveries():
            await self._room.acquire()
            shared = SharedDelivery(delivery)
            yield shared, shared

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Acknowledge the events that Airflow has stored for all watchers; refuse the others."""
        for item in batch:
            shared: SharedDelivery = item.broker_payload
            self._room.release()
            too_soon = time.monotonic() - shared.handed_on_at < self._watch.options.unconfirmed
            if item.outcome.failed or not item.outcome.acked or shared.handing_on or too_soon:
                self._watch.refuse(shared.delivery)
            else:
                self._watch.acknowledge(shared.delivery)

    def get_advance_lane(self, broker_payload: Any) -> Hashable:
        """Return a separate lane for each event: none waits until another one is stored."""
        return id(broker_payload)

    async def aclose(self) -> None:
        """Leave the stream."""
        self._watch.close()
