"""The event stream as Airflow 3.3 shares it among watchers; Airflow confirms which events it has stored."""

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
    handing_on: int = 0  # how many triggers have yielded an event that Airflow has not queued yet
    handed_on_at: float = float("-inf")  # when Airflow last queued one, by the monotonic clock


class EventsProducer(SharedStreamProducer):
    """Holds the event stream of one connection, and acknowledges events once Airflow has stored them.

    When a triggerer ends, Airflow reports events as accepted that it never stores: those that it has not
    queued, or that it reports sooner than it can know. They are refused, and DingTalk delivers them again.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        # More than a watcher's queue holds would fail the watcher.
        most = conf.getint("triggerer", "shared_stream_subscriber_queue_size", fallback=1024)
        self._room = asyncio.Semaphore(max(1, most // 2))

    async def open_stream(self) -> AsyncIterator[tuple[SharedDelivery, SharedDelivery]]:
        """Yield what comes."""
        async for delivery in self._watch.deliveries():
            await self._room.acquire()
            shared = SharedDelivery(delivery)
            yield shared, shared

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Acknowledge events that all watchers have stored; one that failed comes again."""
        for item in batch:
            shared: SharedDelivery = item.broker_payload
            self._room.release()
            too_soon = time.monotonic() - shared.handed_on_at < self._watch.options.unconfirmed
            if item.outcome.failed or not item.outcome.acked or shared.handing_on or too_soon:
                self._watch.refuse(shared.delivery)
            else:
                self._watch.acknowledge(shared.delivery)

    def get_advance_lane(self, broker_payload: Any) -> Hashable:
        """Let no event wait for another to be stored."""
        return id(broker_payload)

    async def aclose(self) -> None:
        """Leave the stream."""
        self._watch.close()
