"""DingTalk's events as plain values: the messages of an event stream, the replies, and events about meetings.

DingTalk pushes the events of an app over a WebSocket ("Stream mode"). :func:`open_call` requests its
address. Each text that arrives is a :class:`Frame` and gets a :func:`reply`. Nothing here opens a connection.
Source: `Stream mode <https://open.dingtalk.com/document/development/introduction-to-stream-mode>`__, and what
DingTalk's SDKs send and accept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003  # who reads a record's types finds it
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow_provider_dingconf.dingtalk.calls import USER_AGENT, Call, call_to
from airflow_provider_dingconf.dingtalk.conferences import ConferenceFilter, Meeting, Reference
from airflow_provider_dingconf.dingtalk.endpoints import EVENT_STREAM
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError, ResponseError
from airflow_provider_dingconf.dingtalk.inputs import hint, shown
from airflow_provider_dingconf.dingtalk.records import (
    fields_in,
    flag_of,
    json_field,
    moment_of,
    number_of,
    text_of,
)

if TYPE_CHECKING:
    from airflow_provider_dingconf.dingtalk.tokens import App

STATUS_CHANGE = "meeting_status_change"
MEMBER_CHANGE = "meeting_member_status_change"
SUITE_TICKET = "suite_ticket"

STARTED = "conference_created"

SCENES: Mapping[str, str] = {  # what can happen in a meeting, and the type of its event
    STARTED: STATUS_CHANGE,
    "conference_closed": STATUS_CHANGE,
    "user_join": MEMBER_CHANGE,
    "user_leave": MEMBER_CHANGE,
    "user_invited": MEMBER_CHANGE,
    "user_kicked": MEMBER_CHANGE,
}

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class FrameError(ValueError):
    """Raised when a text from the stream is not a message that DingTalk documents."""


@dataclass(frozen=True)
class Address:
    """The address of an app's event stream, for one connection."""

    url: str = field(repr=False)  # of the WebSocket, with the ticket; its scheme is in lower case
    ticket: str = field(repr=False)  # valid for one connection within a short time

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown."""
        return self.ticket, quote(self.ticket, safe="")


def open_call(app: App) -> Call:
    """Return the call that requests the address for all events of an app."""
    body = {
        "clientId": app.client_id,
        "clientSecret": app.client_secret,
        "subscriptions": [{"type": "EVENT", "topic": "*"}],
        "ua": USER_AGENT,
    }
    return call_to(EVENT_STREAM, body=body, read=address_from)


def address_from(content: Mapping[str, Any]) -> Address:
    """Return the address in the response to :func:`open_call`: ``wss``, or ``ws`` to this machine."""
    endpoint, ticket = content.get("endpoint"), content.get("ticket")
    try:
        parts = urlsplit(endpoint if isinstance(endpoint, str) else "")
        usable = parts.scheme == "wss" or (parts.scheme == "ws" and parts.hostname in _LOOPBACK)
        usable = usable and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not isinstance(ticket, str) or not ticket:
        what = "the response names no secure address for the event stream (wss)"
        raise ResponseError(what, code="unreadableAnswer")
    query = "&".join(filter(None, (parts.query, f"ticket={quote(ticket, safe='')}")))
    return Address(parts._replace(query=query, fragment="").geturl(), ticket)


@dataclass(frozen=True)
class Frame:
    """One message of the stream."""

    kind: str | None  # SYSTEM, EVENT or CALLBACK
    data: Mapping[str, Any] = field(repr=False)  # the JSON object in it; empty if there is none
    raw_data: str = field(repr=False)  # the text of data, as it arrived
    topic: str | None = json_field(text_of, "topic")
    message_id: str | None = json_field(text_of, "messageId")  # a new one for each delivery of an event
    event_type: str | None = json_field(text_of, "eventType")
    event_id: str | None = json_field(text_of, "eventId")  # the same for each delivery of an event
    corp_id: str | None = json_field(text_of, "eventCorpId")
    born_at: datetime | None = json_field(moment_of, "eventBornTime")

    @property
    def is_event(self) -> bool:
        """Whether the message is an event; otherwise it is about the connection."""
        return self.kind == "EVENT"

    @property
    def is_of_meetings(self) -> bool:
        """Whether the message is an event that should name a meeting."""
        return self.is_event and self.event_type in {STATUS_CHANGE, MEMBER_CHANGE}

    @property
    def outline(self) -> str:
        """The names of the fields in the data, in ASCII and without values."""
        return ascii({name: [*value] if isinstance(value, dict) else "" for name, value in self.data.items()})

    @property
    def says_goodbye(self) -> bool:
        """Whether DingTalk is about to close the connection."""
        return self.kind == "SYSTEM" and self.topic == "disconnect"


def read_frame(text: str) -> Frame:
    """Return the message in a text from the stream.

    :raises FrameError: the text is not a message that can get a reply.
    """
    content = _object(text)
    headers = content.get("headers")
    if not isinstance(headers, dict) or not text_of(headers, "messageId"):
        raise FrameError("it is not a JSON object with headers.messageId")
    raw = content.get("data")
    raw = raw if isinstance(raw, str) else json.dumps(raw)
    return Frame(text_of(content, "type"), _object(raw), raw, **fields_in(Frame, headers))


def reply(frame: Frame, *, taken: bool = True) -> str:
    """Return the text of the reply to a message.

    :param taken: whether an event is acknowledged; otherwise, DingTalk delivers it again later.
    """
    status = {"status": "SUCCESS" if taken else "LATER"}
    data = json.dumps(status) if frame.is_event else frame.raw_data  # a ping gets its own data back
    headers = {"messageId": frame.message_id, "contentType": "application/json"}
    return json.dumps({"code": 200, "headers": headers, "message": "OK", "data": data})


def suite_ticket(frame: Frame) -> str | None:
    """Return the suite ticket in an event; None if there is none."""
    if not frame.is_event or frame.event_type != SUITE_TICKET:
        return None
    ticket = text_of(frame.data, "suiteTicket", "SuiteTicket")
    return ticket if ticket and re.fullmatch(r"[\x21-\x7e]+", ticket) else None


@dataclass(frozen=True)
class ConferenceEvent(Meeting):
    """Something that happened in a meeting. Of the meeting, an event about members gives only the id."""

    event_id: str = ""  # the same for each delivery of the event
    event_type: str = ""  # STATUS_CHANGE or MEMBER_CHANGE
    scene: str = ""  # what happened, usually one of SCENES
    corp_id: str | None = None
    sequence: int | None = None  # orders the events of a meeting
    happened_at: datetime | None = None
    members: tuple[Mapping[str, Any], ...] = ()  # of an event about members

    def payload(self) -> dict[str, Any]:
        """Return the event as plain JSON, with times in ISO 8601 and UTC."""
        return self.as_dict("milliseconds")


def conference_events(frame: Frame) -> list[ConferenceEvent]:
    """Return the events about meetings in a message; none if it is about something else.

    An event about members can name several meetings. It becomes one event for each.
    """
    if not frame.is_of_meetings or not frame.event_id:
        return []
    about_members = frame.event_type == MEMBER_CHANGE
    models = frame.data.get("openMemberModels") if about_members else [frame.data.get("openConfModel")]
    meetings: dict[str, list[dict[str, Any]]] = {}
    for model in models if isinstance(models, list) else []:
        with suppress(AttributeError, InvalidInputError):  # it is not an object, or names no meeting
            meeting = Reference("conference_id", text_of(model, "conferenceId") or "")
            meetings.setdefault(meeting.value, []).append(model)
    return [
        ConferenceEvent(
            **fields_in(ConferenceEvent, {"conferenceId": meeting_id} if about_members else found[0]),
            event_id=frame.event_id,
            event_type=frame.event_type or "",
            scene=text_of(frame.data, "changeScene") or "",
            corp_id=frame.corp_id,
            sequence=number_of(frame.data, "statusSeqNum"),
            happened_at=frame.born_at,
            members=tuple(map(_member, found)) if about_members else (),
        )
        for meeting_id, found in meetings.items()
    ]


def _member(model: Mapping[str, Any]) -> dict[str, Any]:
    joined = moment_of(model, "joinTime")
    return {
        "user_id": text_of(model, "userId"),
        "nick": text_of(model, "userNick"),
        "host": flag_of(model, "host"),
        "co_host": flag_of(model, "coHost"),
        "attend_status": number_of(model, "attendStatus"),
        "join_time": joined and joined.isoformat(timespec="milliseconds"),
    }


@dataclass(frozen=True)
class EventFilter(ConferenceFilter):
    """Selects events about meetings. If an event lacks what the filter needs, it is not selected.

    :param scenes: one or several of :data:`SCENES`; kept sorted, without duplicates.
    :raises InvalidInputError: a value is invalid, or the events of a scene never have what the filter needs.
    """

    scenes: Collection[str] = field(default=(STARTED,), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scenes", _scenes(self.scenes))
        super().__post_init__()
        asked = [name for name in ("title_pattern", "creator_id") if getattr(self, name) is not None]
        silent = [scene for scene in self.scenes if SCENES[scene] == MEMBER_CHANGE]
        if asked and silent:
            raise InvalidInputError(
                f"{asked[0]}: an event {silent[0]!r} does not hold the meeting's title or creator"
            )

    def wants(self, event: ConferenceEvent) -> bool:
        """Return whether an event is selected."""
        return event.scene in self.scenes and self.takes(event.title, event.creator_id)


def _scenes(scenes: object) -> tuple[str, ...]:
    """Return scenes in a canonical form, by which Airflow runs equal filters as one trigger."""
    given = [scenes] if isinstance(scenes, str) else scenes
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise InvalidInputError(f"scenes: expected a list of strings, got {shown(scenes)}")
    found = list(given)
    if not found:
        raise InvalidInputError(f"scenes: none is given{hint('', SCENES)}")
    for scene in found:
        if not isinstance(scene, str) or scene not in SCENES:
            raise InvalidInputError(f"scenes: {shown(scene)} is unknown{hint(scene, SCENES)}")
    return tuple(sorted(set(found)))


def _object(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}
