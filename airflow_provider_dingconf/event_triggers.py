"""``ConferenceEventTrigger``: start DAGs when something happens in a meeting, on Airflow 3.

Importing this module into a DAG file imports no HTTP library: only the triggerer opens the event stream.
"""

from __future__ import annotations

import asyncio
import time
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
from airflow_provider_dingconf.dingtalk.inputs import check_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence

    from airflow.triggers.shared_stream import SharedStreamProducer

    from airflow_provider_dingconf.client.client import DingTalkClient
    from airflow_provider_dingconf.client.event_stream import Delivery, StreamOptions, Watch

_REMEMBERED = 4096


class InvalidFilterError(InvalidInputError, TypeError):
    """Raised for a malformed filter or connection id.

    The triggerer can meet a filter that an older version of this package accepted. A :class:`TypeError` fails
    that one trigger, and any other error fails all of them.
    """


async def _connect(dingtalk_conn_id: str) -> DingTalkClient:
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    return await DingTalkConferenceHook._aconnect_to(dingtalk_conn_id, max_attempts=1, max_seconds=30.0)


class ConferenceEventTrigger(BaseEventTrigger):
    """Turn DingTalk's events about meetings into asset events.

    .. code-block:: python

        started = Asset(
            "dingtalk_release_meetings",
            watchers=[AssetWatcher("started", ConferenceEventTrigger(title_pattern="^Release"))],
        )

        with DAG("lock_release_meetings", schedule=started):
            ...

    The payload of an asset event is a dict of plain JSON: ``conference_id``, ``scene``, ``title``,
    ``status``, ``creator_id``, ``start_time`` and more, with times in ISO 8601.
    :func:`triggering_conferences` gives a task the payloads of all events that started its run.

    The trigger acknowledges an event when Airflow has stored it. If DingTalk delivers the event again, the
    trigger does not fire again. After events that come close together, it fires *sweeps*: events without a
    ``conference_id``. They make Airflow's scheduler look again, which can overlook events that come while
    another one waits for its run.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``, with Client ID and Client Secret.
        If it has an organisation (``corp_id``), only events of that organisation count.
    :param scenes: what happens: ``conference_created``, ``conference_closed``, ``user_join``, ``user_leave``,
        ``user_invited``, ``user_kicked``.
    :param title_pattern: a regular expression that must match somewhere in the first 256 characters of the
        title; ``^`` is its beginning.
    :param creator_id: the unionId of the creator.
    :raises InvalidInputError: a filter or ``dingtalk_conn_id`` is malformed, a scene is unknown, or the
        events of a scene do not hold what a filter asks for; raised when the DAG is parsed.
    """

    stream_options: ClassVar[StreamOptions | None] = None

    def __init__(
        self,
        *,
        dingtalk_conn_id: str = "dingtalk_default",
        scenes: Sequence[str] = (STARTED,),
        title_pattern: str | None = None,
        creator_id: str | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        try:
            self.dingtalk_conn_id = check_text("dingtalk_conn_id", dingtalk_conn_id)
            self.filter = EventFilter(title_pattern, creator_id, scenes=scenes)
        except InvalidInputError as error:
            raise InvalidFilterError(error.message) from None
        self._watch: Watch | None = None
        self._fired: dict[tuple[str, str], None] = {}
        self._key = (self.dingtalk_conn_id, self.filter)
        self._began = time.monotonic()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments; Airflow runs watchers with equal ones as one trigger."""
        kwargs = {
            "dingtalk_conn_id": self.dingtalk_conn_id,
            "scenes": list(self.filter.scenes),
            "title_pattern": self.filter.title_pattern,
            "creator_id": self.filter.creator_id,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield the events until cancelled, on Airflow before 3.3."""
        from airflow_provider_dingconf.client.event_stream import Watch

        self._watch = Watch(self.dingtalk_conn_id, _connect, self.stream_options)
        async for delivery in self._watch.deliveries():
            events = [*self._wanted(delivery)]
            for event in events:
                yield event
            # Before 3.3, Airflow does not say when it has stored them.
            seconds = self._watch.options.stored if events else 0.0
            asyncio.get_running_loop().call_later(seconds, self._watch.acknowledge, delivery)

    async def cleanup(self) -> None:
        """Leave the stream here, because Airflow does not wait for the end of a cancelled generator."""
        if self._watch is not None:
            self._watch.close()

    # Airflow 3.3: one stream for all watchers of a connection; Airflow confirms what it has stored

    def shared_stream_key(self) -> Hashable:
        """Return a key that all watchers of a connection share."""
        return (__name__, self.dingtalk_conn_id)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return the producer that holds the stream of a connection."""
        from airflow_provider_dingconf.client.event_stream import Watch
        from airflow_provider_dingconf.stream_producer import EventsProducer

        return EventsProducer(Watch(kwargs["dingtalk_conn_id"], _connect, cls.stream_options))

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield the events of the shared stream that this trigger wants."""
        from airflow_provider_dingconf.client.event_stream import note_join

        note_join()
        async for shared in shared_stream:
            for event in self._wanted(shared.delivery):
                shared.handing_on += 1
                yield event  # does not return if the triggerer ends before it has queued the event
                shared.handing_on -= 1
                shared.handed_on_at = time.monotonic()

    def _wanted(self, delivery: Delivery) -> Iterator[TriggerEvent]:
        """Yield the events to fire for a delivery."""
        if not delivery.events and delivery.is_swept_by(self._key, self._began):
            yield TriggerEvent({"event_type": "sweep", "conference_id": None})  # type: ignore[no-untyped-call]
        for event in filter(self.filter.wants, delivery.events):
            delivery.fired.add(self._key)
            name = (event.event_id, event.conference_id)
            if name not in self._fired:
                self._fired[name] = None
                if len(self._fired) > _REMEMBERED:
                    del self._fired[next(iter(self._fired))]
                yield TriggerEvent(event.payload())  # type: ignore[no-untyped-call]


def triggering_conferences(
    triggering_asset_events: Mapping[Any, Sequence[Any]] | None,
) -> list[dict[str, Any]]:
    """Return the payloads of the asset events that started a run: one for each DingTalk event.

    .. code-block:: python

        @task
        def conference_ids(triggering_asset_events=None):
            return [one["conference_id"] for one in triggering_conferences(triggering_asset_events)]

    Several events can have started a run, or only sweeps: see :class:`ConferenceEventTrigger`. For a run that
    only sweeps started, the list is empty.

    :param triggering_asset_events: Airflow's ``triggering_asset_events``, from a task's context; or None.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for events in (triggering_asset_events or {}).values():
        for event in events:
            payload = (event.extra or {}).get("payload")
            payload = payload if isinstance(payload, dict) else {}
            meeting = payload.get("conference_id")
            if meeting and isinstance(meeting, str):  # others may create events of the asset, too
                found.setdefault((str(payload.get("event_id")), meeting), payload)
    return list(found.values())
