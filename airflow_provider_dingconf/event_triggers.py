"""``ConferenceEventTrigger``: DAGs that start when something happens in a meeting.

For the ``AssetWatcher`` of Airflow 3. A DAG file that imports this module imports no HTTP library: the stream
is held by the triggerer.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version

try:
    from airflow.triggers.base import BaseEventTrigger, TriggerEvent
except ImportError:
    raise ImportError(
        f"ConferenceEventTrigger needs Airflow 3.0 or later; this is Airflow {airflow_version}"
    ) from None

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.dingtalk.events import STARTED, EventFilter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence

    from airflow.triggers.shared_stream import SharedStreamProducer

    from airflow_provider_dingconf.client.event_stream import Delivery, Watch

CHECK_SECONDS = 0.5
"""Before Airflow 3.3, which confirms it: between two looks whether Airflow has stored what was fired."""

SAFE_SECONDS = (3.0, 0.1)
"""Where that cannot be seen: how long Airflow has to store what was fired, and how much longer for each."""

CROWD_SECONDS = 10.0
"""Events that follow one another more closely than this can be left lying by Airflow's scheduler."""

_REMEMBERED = 4096
_SWEEP = {"event_type": "sweep", "conference_id": None}

log = logging.getLogger(__name__)


class InvalidFilterError(InvalidInputError, TypeError):
    """Raised for a filter that cannot be meant.

    It is a :class:`TypeError`, too: in the triggerer, where the filter can be one that an older version of
    this package took, that fails the one trigger, and any other error all of them.
    """


class _Firings:
    """When triggers of this process fired last: a DAG can be started by several of them."""

    def __init__(self) -> None:
        self._event: str | None = None
        self.at = self._another_at = float("-inf")

    def add(self, event_id: str, now: float) -> float:
        """Note that something is fired for an event, and return when that was last so for another event."""
        if event_id != self._event:
            self._event, self._another_at = event_id, self.at
        self.at = now
        return self._another_at


_firings = _Firings()


class ConferenceEventTrigger(BaseEventTrigger):
    """Turn what happens in DingTalk meetings into asset events.

    .. code-block:: python

        started = Asset(
            "dingtalk_release_meetings",
            watchers=[AssetWatcher("started", ConferenceEventTrigger(title_pattern="^Release"))],
        )

        with DAG("lock_release_meetings", schedule=started):
            ...

    The payload of an asset event is a dict of plain JSON: ``conference_id``, ``scene``, ``title``,
    ``status``, ``creator_id``, ``start_time`` and more, times as ISO 8601. :func:`triggering_conferences`
    gives a task the payloads of all events that started its run.

    Each event is fired once, however often DingTalk delivers it, and acknowledged when Airflow has it. After
    events that came close together one more follows, the sweep, whose payload has no ``conference_id``:
    Airflow's scheduler gives a run the events up to the first it noticed, and those that came after that one
    would lie until another comes.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``, with Client ID and Client Secret.
        One with an organisation (``corp_id``) gets the events of that organisation alone.
    :param scenes: what is to have happened: ``conference_created``, ``conference_closed``, ``user_join``,
        ``user_leave``, ``user_invited``, ``user_kicked``.
    :param title_pattern: a regular expression to be found in the meeting's title; ``^`` is its beginning.
    :param creator_id: who is to have created the meeting.
    :raises InvalidInputError: a scene is unknown, the pattern is no regular expression, or the events of a
        scene do not tell what is asked for; when the DAG is parsed.
    """

    def __init__(
        self,
        *,
        dingtalk_conn_id: str = "dingtalk_default",
        scenes: Sequence[str] = (STARTED,),
        title_pattern: str | None = None,
        creator_id: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dingtalk_conn_id = dingtalk_conn_id
        try:
            self.filter = EventFilter(scenes, title_pattern, creator_id)
        except InvalidInputError as error:
            raise InvalidFilterError(str(error)) from None
        self._watch: Watch | None = None
        self._unstored: _Unstored | None = None
        self._fired: dict[tuple[str, str], None] = {}
        self._fired_at = _firings.at
        self._crowded = time.monotonic() - self._fired_at < CROWD_SECONDS  # by the one whose place this takes

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer makes the trigger of."""
        kwargs = {
            "dingtalk_conn_id": self.dingtalk_conn_id,
            "scenes": list(self.filter.scenes),
            "title_pattern": self.filter.title_pattern,
            "creator_id": self.filter.creator_id,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the events, until cancelled: Airflow before 3.3."""
        from airflow_provider_dingconf.client.event_stream import Watch

        self._watch = Watch(self.dingtalk_conn_id)
        self._unstored = _Unstored(_outbox())
        async for delivery in self._watch.deliveries():
            fired = []
            for event in self._wanted(delivery):
                fired.append(event)
                yield event
            if fired:
                self._unstored.add(delivery, fired)
            else:
                delivery.taken()

    async def cleanup(self) -> None:
        """Leave the stream, which Airflow does not wait for a cancelled generator to do."""
        if self._unstored is not None:
            self._unstored.close()
        if self._watch is not None:
            self._watch.close()

    # Airflow 3.3: one stream for all watchers of a connection, and a word when Airflow has stored an event

    def shared_stream_key(self) -> Hashable:
        """Return what the watchers of a connection have in common."""
        return (__name__, self.dingtalk_conn_id)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return what holds the stream of a connection, and acknowledges its events."""
        from airflow_provider_dingconf.stream_producer import EventsProducer

        return EventsProducer(kwargs["dingtalk_conn_id"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield the events of the shared stream that this trigger wants."""
        from airflow_provider_dingconf.client.event_stream import note_join

        note_join()
        async for delivery in shared_stream:
            for event in self._wanted(delivery):
                yield event

    def _wanted(self, delivery: Delivery) -> Iterator[TriggerEvent]:
        """Yield what is to be fired for what the stream has delivered."""
        now = time.monotonic()
        for event in delivery.events:
            name = (event.event_id, event.conference_id)
            if not self.filter.wants(event):
                continue
            delivery.fired = True
            if name not in self._fired:
                self._fired[name] = None
                if len(self._fired) > _REMEMBERED:
                    del self._fired[next(iter(self._fired))]
                before = max(_firings.add(event.event_id, now), self._fired_at)
                self._crowded = self._crowded or now - before < CROWD_SECONDS
                self._fired_at = now
                yield _fire(event.payload())
        calm = now - self._fired_at >= CROWD_SECONDS
        if not delivery.events and ((self._crowded and calm) or delivery.overdue):
            _firings.add("", now)
            self._crowded, self._fired_at = False, now
            delivery.fired = True
            yield _fire(dict(_SWEEP))


class _Unstored:
    """What a trigger has fired and Airflow may not have stored yet: before Airflow 3.3, which confirms it.

    :param outbox: the runner's queue of what it has yet to hand to its supervisor, if known.
    """

    def __init__(self, outbox: deque[Any] | None) -> None:
        self._outbox = outbox
        self._deliveries: list[tuple[Delivery, list[TriggerEvent]]] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, delivery: Delivery, fired: list[TriggerEvent]) -> None:
        """Let a delivery be taken as soon as Airflow has stored what was fired for it."""
        self._deliveries.append((delivery, fired))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._take())

    def close(self) -> None:
        """Take no more."""
        if self._task is not None:
            self._task.cancel()

    async def _take(self) -> None:
        while self._deliveries:
            await asyncio.sleep(CHECK_SECONDS)
            inside = {id(entry[1]) for entry in self._outbox or ()}
            looked_at, self._deliveries, gone = self._deliveries, [], []
            for delivery, fired in looked_at:
                if inside.isdisjoint(map(id, fired)):
                    gone.append(delivery)
                else:
                    self._deliveries.append((delivery, fired))
            if gone:
                await self._stored(len(gone))
            for delivery in gone:
                delivery.taken()

    async def _stored(self, events: int) -> None:
        """Wait until Airflow has stored what has left the runner's queue.

        The runner's supervisor answers one message at a time, and stores all it was handed before it reads
        the next: whatever it is asked then, its answer says that it has. It is asked to mask nothing.
        """
        from airflow.sdk.execution_time import task_runner
        from airflow.sdk.execution_time.comms import MaskSecret

        comms: Any = getattr(task_runner, "SUPERVISOR_COMMS", None)
        if self._outbox is None or comms is None:
            least, each = SAFE_SECONDS
            await asyncio.sleep(least + each * events)
        else:
            await comms.asend(MaskSecret(value=[]))


def _outbox() -> deque[Any] | None:
    """Return the queue of the runner that drives the trigger from which this is called.

    Airflow gives a trigger no way to it: it is found as what is driving the trigger at the moment.
    """
    frame = inspect.currentframe()
    while frame is not None:
        queue = getattr(frame.f_locals.get("self"), "events", None)
        if isinstance(queue, deque):
            return queue
        frame = frame.f_back
    return None


def _fire(payload: dict[str, Any]) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]


def triggering_conferences(
    triggering_asset_events: Mapping[Any, Sequence[Any]] | None,
) -> list[dict[str, Any]]:
    """Return the payloads of the asset events that started a run, each event of DingTalk's once.

    .. code-block:: python

        @task
        def conference_ids(triggering_asset_events=None):
            return [one["conference_id"] for one in triggering_conferences(triggering_asset_events)]

    A run can have been started by several events, and by none of a meeting: see
    :class:`ConferenceEventTrigger`.

    :param triggering_asset_events: Airflow's, from a task's context; None for none.
    """
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for events in (triggering_asset_events or {}).values():
        for event in events:
            payload = (event.extra or {}).get("payload")
            if isinstance(payload, dict) and payload.get("conference_id"):
                found.setdefault((payload.get("event_id"), payload["conference_id"]), payload)
    return list(found.values())
