"""``ConferenceEventTrigger``: DAGs that start when something happens in a meeting.

For the ``AssetWatcher`` of Airflow 3. A DAG file that imports this module imports no HTTP library: the stream
is held by the triggerer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version

try:
    from airflow.triggers.base import BaseEventTrigger, TriggerEvent
except ImportError:
    raise ImportError(
        f"ConferenceEventTrigger needs Airflow 3.0 or later; this is Airflow {airflow_version}"
    ) from None

from airflow_provider_dingconf.dingtalk.events import STARTED, EventFilter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence

    from airflow.triggers.shared_stream import SharedStreamProducer

    from airflow_provider_dingconf.dingtalk.events import ConferenceEvent
    from airflow_provider_dingconf.stream import Watch

SAFE_SECONDS = 3.0
"""Before Airflow 3.3, which confirms it: when Airflow has stored an event that a trigger has yielded."""

CROWD_SECONDS = 10.0
"""Events that follow one another more closely than this can be left lying by Airflow's scheduler."""

_REMEMBERED = 4096
_SWEEP = {"event_type": "sweep", "conference_id": None}


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
        self.filter = EventFilter(
            (scenes,) if isinstance(scenes, str) else tuple(scenes), title_pattern, creator_id
        )
        self._watch: Watch | None = None
        self._fired: dict[tuple[str, str], None] = {}
        self._fired_at = float("-inf")
        self._crowded = False

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
        from airflow_provider_dingconf.stream import Watch

        self._watch = Watch(self.dingtalk_conn_id)
        async for delivery in self._watch.deliveries():
            fired = False
            for event in self._wanted(delivery.events if delivery else None):
                yield event
                fired = True
            if delivery:
                delivery.taken(after=SAFE_SECONDS if fired else 0.0)

    async def cleanup(self) -> None:
        """Leave the stream, which Airflow does not wait for a cancelled generator to do."""
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
        async for events in shared_stream:
            for event in self._wanted(events):
                yield event

    def _wanted(self, events: Sequence[ConferenceEvent] | None) -> Iterator[TriggerEvent]:
        """Yield what is to be fired for events of the stream, or (None) for a while without any."""
        now = time.monotonic()
        if events is None:
            if self._crowded and now - self._fired_at > CROWD_SECONDS / 2:
                self._crowded, self._fired_at = False, now
                yield _fire(dict(_SWEEP))
            return
        for event in events:
            name = (event.event_id, event.conference_id)
            if name not in self._fired and self.filter.wants(event):
                self._fired[name] = None
                if len(self._fired) > _REMEMBERED:
                    del self._fired[next(iter(self._fired))]
                self._crowded = self._crowded or now - self._fired_at < CROWD_SECONDS
                self._fired_at = now
                yield _fire(event.payload())


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
