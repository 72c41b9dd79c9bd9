"""``ConferenceEventTrigger``: DAGs that start when something happens in a meeting.

For the ``AssetWatcher`` of Airflow 3. A DAG file that imports this module imports no HTTP library: only the
triggerer holds the event stream.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

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

    from airflow_provider_dingconf.client.client import DingTalkClient
    from airflow_provider_dingconf.client.event_stream import Delivery, StreamOptions, Watch

_REMEMBERED = 4096
_SWEEP = {"event_type": "sweep", "conference_id": None}


class InvalidFilterError(InvalidInputError, TypeError):
    """Raised for a malformed filter.

    It is a :class:`TypeError`, too: the triggerer can meet a filter that an older version of this package
    accepted. A TypeError fails that one trigger, and any other error all of them.
    """


@dataclass(frozen=True)
class TriggerTimes:
    """When a trigger acknowledges and sweeps. All are in seconds.

    :param sweeps: after an event that Airflow's scheduler can have overlooked.
    :param stored: before Airflow 3.3, which confirms it: after which an event handed on counts as stored.
    :param unconfirmed: on Airflow 3.3: an event resolved sooner after it was handed on was not stored, since
        the triggerer confirms nothing before its next round, one second later.
    """

    sweeps: tuple[float, ...] = (10.0, 40.0, 160.0, 640.0)
    stored: float = 5.0
    unconfirmed: float = 0.5


class Firings:
    """When triggers of this process last fired: several of them can start the same DAG.

    :param began: when this process began; what others fired before that is not known.
    """

    def __init__(self, began: float) -> None:
        self._event: str | None = None
        self.at = float("-inf")
        self._before = began

    def add(self, event_id: str, now: float) -> float:
        """Note that a trigger fires for an event, and return when one last did for another event."""
        if event_id != self._event:
            self._event, self._before = event_id, max(self._before, self.at)
        self.at = now
        return self._before


class Sweeps:
    """When a trigger fires for no event, only to make Airflow's scheduler look again.

    While an event waits for its run, the scheduler overlooks all events that come after it, until another one
    comes when none waits. So an event is overlooked only if the scheduler has been away since the one before
    it. It is then likely to stay away about as long again, and nearer sweeps are omitted. The last one finds
    what was overlooked unless the scheduler is away for longer than its distance.

    :param distances: seconds from an event to each of its sweeps.
    :param firings: of all triggers of the process.
    :param now: of the monotonic clock, here and below.
    """

    def __init__(self, distances: Sequence[float], firings: Firings, now: float) -> None:
        self._distances = distances
        self._firings = firings
        self._ahead: list[float] = []
        self._plan(firings.at, 0.0, now)  # of a trigger whose place this one takes

    def __bool__(self) -> bool:
        """Return whether any sweep is ahead."""
        return bool(self._ahead)

    def fired(self, event_id: str, now: float) -> None:
        """Plan the sweeps after an event that the trigger fires for."""
        self._plan(now, now - self._firings.add(event_id, now), now)

    def restart(self, now: float) -> None:
        """Plan the sweeps after events before a restart."""
        self._plan(now, 0.0, now)

    def pop_due(self, now: float) -> bool:
        """Return whether to sweep now."""
        ahead = [at for at in self._ahead if at > now]
        due, self._ahead = len(ahead) < len(self._ahead), ahead
        if due:
            self._firings.add("", now)
        return due

    def _plan(self, after: float, gap: float, now: float) -> None:
        self._ahead = [after + each for each in self._distances if each >= gap and after + each > now]


async def _connect(dingtalk_conn_id: str) -> DingTalkClient:
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    return await DingTalkConferenceHook(dingtalk_conn_id, max_attempts=1, max_seconds=30.0)._aconnect()


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

    An event is acknowledged when Airflow has stored it, and fires nothing when DingTalk delivers it again.
    After events that come close together, sweeps follow: they have no ``conference_id``. Airflow's scheduler
    gives a run the events up to the first it noticed, and overlooks the later ones until another comes.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``, with Client ID and Client Secret.
        One with an organisation (``corp_id``) gets the events of that organisation alone.
    :param scenes: what happens: ``conference_created``, ``conference_closed``, ``user_join``, ``user_leave``,
        ``user_invited``, ``user_kicked``.
    :param title_pattern: a regular expression to search the meeting's title for; ``^`` is its beginning.
    :param creator_id: who created the meeting.
    :raises InvalidInputError: when the DAG is parsed: a filter is malformed, a scene is unknown, or a scene's
        events do not hold what a filter asks for.
    """

    times: ClassVar[TriggerTimes] = TriggerTimes()
    stream_options: ClassVar[StreamOptions | None] = None
    firings: ClassVar[Firings] = Firings(time.monotonic())

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
            self.filter = EventFilter(title_pattern, creator_id, scenes=scenes)
        except InvalidInputError as error:
            raise InvalidFilterError(str(error)) from None
        self._watch: Watch | None = None
        self._fired: dict[tuple[str, str], None] = {}
        self._sweeps = Sweeps(self.times.sweeps, self.firings, time.monotonic())

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the triggerer makes the trigger of; equal filters are one trigger."""
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

        self._watch = Watch(self.dingtalk_conn_id, _connect, self.stream_options)
        async for delivery in self._watch.deliveries():
            handed_on = False
            for event in self._wanted(delivery):
                yield event
                handed_on = True
            if handed_on:  # Airflow does not say when it has stored them
                asyncio.get_running_loop().call_later(self.times.stored, delivery.acknowledge)
            else:
                delivery.acknowledge()

    async def cleanup(self) -> None:
        """Leave the stream: Airflow does not wait for a cancelled generator to do so."""
        if self._watch is not None:
            self._watch.close()

    # Airflow 3.3: one stream for all watchers of a connection, and a confirmation of what Airflow has stored

    def shared_stream_key(self) -> Hashable:
        """Return what the watchers of a connection have in common."""
        return (__name__, self.dingtalk_conn_id)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return what holds the stream of a connection, and acknowledges its events."""
        from airflow_provider_dingconf.client.event_stream import Watch
        from airflow_provider_dingconf.stream_producer import EventsProducer

        watch = Watch(kwargs["dingtalk_conn_id"], _connect, cls.stream_options)
        return EventsProducer(watch, cls.times.unconfirmed)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield the events of the shared stream that this trigger wants."""
        from airflow_provider_dingconf.client.event_stream import note_join

        note_join()
        async for shared in shared_stream:
            for event in self._wanted(shared.delivery):
                shared.handing_on += 1
                yield event  # and is not resumed if the triggerer ends before it has queued the event
                shared.handing_on -= 1
                shared.handed_on_at = time.monotonic()

    def _wanted(self, delivery: Delivery) -> Iterator[TriggerEvent]:
        """Yield what to fire for a delivery."""
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
                self._sweeps.fired(event.event_id, now)
                yield _fire(event.payload())
        if delivery.overdue:
            self._sweeps.restart(now)
        sweep = not delivery.events and self._sweeps.pop_due(now)
        delivery.sweep_ahead = delivery.sweep_ahead or bool(self._sweeps)
        if sweep:
            yield _fire(dict(_SWEEP))


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
