"""DingTalk's events as plain values: frames of its stream in and out, and what a meeting's event says.

DingTalk pushes the events of an app over a WebSocket ("Stream mode"). :func:`open_call` asks where to;
each text that comes is a :class:`Frame`, and is answered with :func:`reply`. Nothing here connects to
anything. Source: `Stream mode <https://open.dingtalk.com/document/development/introduction-to-stream-mode>`__,
and what DingTalk's SDKs for it send and accept.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from airflow_provider_dingconf.dingtalk.calls import USER_AGENT, Call, check_conference_id, moment_of, text_of
from airflow_provider_dingconf.dingtalk.conferences import STATUS, facts_of
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_dingconf.dingtalk.tokens import App

STATUS_CHANGE = "meeting_status_change"
MEMBER_CHANGE = "meeting_member_status_change"
SUITE_TICKET = "suite_ticket"

STARTED = "conference_created"

SCENES: Mapping[str, str] = {
    STARTED: STATUS_CHANGE,
    "conference_closed": STATUS_CHANGE,
    "user_join": MEMBER_CHANGE,
    "user_leave": MEMBER_CHANGE,
    "user_invited": MEMBER_CHANGE,
    "user_kicked": MEMBER_CHANGE,
}
"""What can happen in a meeting, and the type of the event that says so."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_DISCONNECT = "disconnect"
_MOST = 2**63
"""One more than the largest whole number that every reader of JSON, and every database, can hold."""

MAX_TITLE = 256
"""Characters of a title that a pattern is looked for in: it is searched in the triggerer's one loop."""


class FrameError(ValueError):
    """Raised when a text of the stream is not the frame that DingTalk documents."""


@dataclass(frozen=True)
class Address:
    """Where an app's events come from, for one connection.

    :param url: of the WebSocket, with the ticket, its scheme in lower case; never shown.
    :param ticket: lets in once, and not for long; never shown.
    """

    url: str = field(repr=False)
    ticket: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must be shown to no one."""
        return self.ticket, quote(self.ticket, safe="")


def open_call(app: App) -> Call:
    """Return the call that asks for a connection to all events of an app.

    :param app: whose; its credentials are in the body, and there is no access token.
    """
    return Call(
        name="event stream",
        method="POST",
        path="/v1.0/gateway/connections/open",
        body={
            "clientId": app.client_id,
            "clientSecret": app.client_secret,
            "subscriptions": [{"type": "EVENT", "topic": "*"}],
            "ua": USER_AGENT,
        },
        page="introduction-to-stream-mode",
        with_credentials=True,
        read=address_from,
    )


def address_from(content: Mapping[str, Any]) -> Address:
    """Return the address in the answer to :func:`open_call`.

    :raises ResponseError: there is none that is usable. It is ``wss``, or ``ws`` to this machine.
    """
    endpoint, ticket = content.get("endpoint"), content.get("ticket")
    try:
        parts = urlsplit(endpoint if isinstance(endpoint, str) else "")
        usable = parts.scheme == "wss" or (parts.scheme == "ws" and parts.hostname in _LOOPBACK)
        usable = usable and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not isinstance(ticket, str) or not ticket:
        raise ResponseError(
            "the answer names no secure address for the event stream (wss)", code="unreadableAnswer"
        )
    query = "&".join(filter(None, (parts.query, f"ticket={quote(ticket, safe='')}")))
    return Address(parts._replace(query=query, fragment="").geturl(), ticket)


@dataclass(frozen=True)
class Frame:
    """One message of the stream.

    :param kind: ``SYSTEM``, ``EVENT`` or ``CALLBACK``.
    :param topic: of a system message, what it is.
    :param message_id: is sent back in the reply; DingTalk gives another one when it delivers again.
    :param data: the JSON document in it; an empty dict where it is not an object.
    :param raw_data: the same as a text, as it came.
    :param event_type: of an event.
    :param event_id: of an event: the same when it is delivered again.
    :param corp_id: the organisation that the event is of.
    :param born_at: when the event happened.
    """

    kind: str
    topic: str
    message_id: str
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    raw_data: str = field(default="", repr=False)
    event_type: str | None = None
    event_id: str | None = None
    corp_id: str | None = None
    born_at: datetime | None = None

    @property
    def is_event(self) -> bool:
        """Whether the message is an event, rather than about the connection."""
        return self.kind == "EVENT"

    @property
    def is_of_meetings(self) -> bool:
        """Whether the message is an event that should name a meeting."""
        return self.is_event and self.event_type in {STATUS_CHANGE, MEMBER_CHANGE}

    @property
    def outline(self) -> str:
        """The names of the fields in it, in ASCII, and no value."""
        return ascii({name: [*value] if isinstance(value, dict) else "" for name, value in self.data.items()})

    @property
    def says_goodbye(self) -> bool:
        """Whether DingTalk is about to close the connection."""
        return self.kind == "SYSTEM" and self.topic == _DISCONNECT


def read_frame(text: str) -> Frame:
    """Return the message in a text of the stream.

    :raises FrameError: it is none that could be answered.
    """
    content = _object(text)
    headers = content.get("headers")
    if not isinstance(headers, dict) or not text_of(headers, "messageId"):
        raise FrameError("the message has no headers.messageId")
    raw = content.get("data")
    raw = raw if isinstance(raw, str) else json.dumps(raw)
    try:
        data = _object(raw)
    except FrameError:
        data = {}
    return Frame(
        kind=text_of(content, "type") or "",
        topic=text_of(headers, "topic") or "",
        message_id=str(text_of(headers, "messageId")),
        data=data,
        raw_data=raw,
        event_type=text_of(headers, "eventType"),
        event_id=text_of(headers, "eventId"),
        corp_id=text_of(headers, "eventCorpId"),
        born_at=moment_of(headers, "eventBornTime"),
    )


def reply(frame: Frame, *, taken: bool = True) -> str:
    """Return the text that answers a message.

    :param frame: the message.
    :param taken: of an event, whether it was taken; otherwise DingTalk is asked to deliver it again later.
    """
    status = {"status": "SUCCESS" if taken else "LATER"}
    data = json.dumps(status) if frame.is_event else frame.raw_data  # a ping is answered with what it holds
    return json.dumps(
        {
            "code": 200,
            "headers": {"messageId": frame.message_id, "contentType": "application/json"},
            "message": "OK",
            "data": data,
        }
    )


def suite_ticket(frame: Frame) -> str | None:
    """Return the suite ticket that an event brings; None where it brings none."""
    if not frame.is_event or frame.event_type != SUITE_TICKET:
        return None
    ticket = text_of(frame.data, "suiteTicket", "SuiteTicket")
    return ticket if ticket and re.fullmatch(r"[\x21-\x7e]+", ticket) else None


@dataclass(frozen=True)
class ConferenceEvent:
    """Something that happened in a meeting.

    :param event_id: the same however often DingTalk delivers the event.
    :param event_type: ``meeting_status_change`` or ``meeting_member_status_change``.
    :param scene: what happened, one of :data:`SCENES`.
    :param sequence: orders the events of a meeting.
    :param happened_at: when the event came to be.
    :param status: ``not_started``, ``started`` or ``ended``; None where the event does not say.
    :param creator_id: the creator's id, None in an event about members, as all that follows but those.
    :param members: whom an event about members is about, each with ``user_id``, ``nick``, ``host``,
        ``co_host``, ``attend_status`` and ``join_time``.
    """

    event_id: str
    event_type: str
    scene: str
    conference_id: str
    corp_id: str | None = None
    sequence: int | None = None
    happened_at: datetime | None = None
    title: str | None = None
    status: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    creator_id: str | None = None
    creator_nick: str | None = None
    room_code: str | None = None
    join_url: str | None = None
    schedule_conference_id: str | None = None
    biz_type: str | None = None
    members: tuple[Mapping[str, Any], ...] = ()

    def payload(self) -> dict[str, Any]:
        """Return the event as plain JSON, with times as ISO 8601 in UTC."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def conference_events(frame: Frame) -> list[ConferenceEvent]:
    """Return what an event says of meetings: nothing where it is about something else.

    An event about members can name several; they are one event for each meeting.
    """
    if not frame.is_event or not frame.event_id:
        return []
    if frame.event_type == STATUS_CHANGE:
        model = frame.data.get("openConfModel")
        return _events(frame, [model] if isinstance(model, dict) else [])
    if frame.event_type == MEMBER_CHANGE:
        models = frame.data.get("openMemberModels")
        return _events(frame, models if isinstance(models, list) else [])
    return []


def _events(frame: Frame, models: Iterable[Any]) -> list[ConferenceEvent]:
    meetings: dict[str, list[dict[str, Any]]] = {}
    for model in models:
        conference_id = text_of(model, "conferenceId") if isinstance(model, dict) else None
        try:
            meetings.setdefault(check_conference_id(conference_id), []).append(model)
        except InvalidInputError:
            continue
    return [_event(frame, conference_id, found) for conference_id, found in meetings.items()]


def _event(frame: Frame, conference_id: str, models: list[dict[str, Any]]) -> ConferenceEvent:
    about_members = frame.event_type == MEMBER_CHANGE
    model: Mapping[str, Any] = {} if about_members else models[0]
    status = STATUS.get(_number(model.get("status")))
    return ConferenceEvent(
        event_id=str(frame.event_id),
        event_type=str(frame.event_type),
        scene=text_of(frame.data, "changeScene") or "",
        conference_id=conference_id,
        corp_id=frame.corp_id,
        sequence=_number(frame.data.get("statusSeqNum")),
        happened_at=frame.born_at,
        title=text_of(model, "title"),
        status=status and status.value,
        **facts_of(model),
        members=tuple(map(_member, models)) if about_members else (),
    )


def _member(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "user_id": text_of(model, "userId"),
        "nick": text_of(model, "userNick"),
        "host": model.get("host") is True,
        "co_host": model.get("coHost") is True,
        "attend_status": _number(model.get("attendStatus")),
        "join_time": _plain(moment_of(model, "joinTime")),
    }


@dataclass(frozen=True)
class EventFilter:
    """Which events of meetings are wanted; one that does not say what is asked for is not.

    :param scenes: what happened, of :data:`SCENES`.
    :param title_pattern: a regular expression to be found in the meeting's title; ``^`` begins it.
    :param creator_id: who created the meeting.
    :raises InvalidInputError: a scene is unknown, the pattern is no regular expression, or the events of a
        scene never say what is asked for.
    """

    scenes: tuple[str, ...] = (STARTED,)
    title_pattern: str | None = None
    creator_id: str | None = None

    def __post_init__(self) -> None:
        if not self.scenes:
            raise InvalidInputError(f"scenes: none is given; known are {', '.join(SCENES)}")
        for scene in self.scenes:
            if scene not in SCENES:
                near = difflib.get_close_matches(str(scene), SCENES, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SCENES)}"
                raise InvalidInputError(f"scenes: {scene!r} is unknown; {hint}")
            asked = [name for name in ("title_pattern", "creator_id") if getattr(self, name) is not None]
            if asked and SCENES[scene] == MEMBER_CHANGE:
                raise InvalidInputError(
                    f"{asked[0]}: an event {scene!r} does not tell the meeting's title or creator"
                )
        try:
            re.compile(self.title_pattern or "")
        except (re.error, TypeError) as error:
            raise InvalidInputError(f"title_pattern: it is not a regular expression: {error}") from None

    def wants(self, event: ConferenceEvent) -> bool:
        """Return whether an event is wanted."""
        return (
            event.scene in self.scenes
            and (
                self.title_pattern is None
                or bool(re.search(self.title_pattern, (event.title or "")[:MAX_TITLE]))
            )
            and (self.creator_id is None or event.creator_id == self.creator_id)
        )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FrameError("the message is not a JSON object")
    return value


def _number(value: object) -> int | None:
    """Return the whole number that a number or a text of digits is; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return cast("int", value) if whole and -_MOST <= cast("int", value) < _MOST else None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return [dict(one) for one in value] if isinstance(value, tuple) else value
