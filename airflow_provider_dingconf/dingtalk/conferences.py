"""Meetings: the ways to name one, the calls that read them, and the responses as typed values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  # who reads a record's types finds it
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_dingconf.dingtalk import endpoints
from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.calls import Call, call_to, page_call
from airflow_provider_dingconf.dingtalk.inputs import SEGMENT_CHAR, check_text, digits_of, plain, shown
from airflow_provider_dingconf.dingtalk.records import (
    Record,
    json_field,
    moment_of,
    number_of,
    read_page,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 100  # meetings in one batch query; DingTalk documents no limit
PAGE = 20  # meetings on one page of a list; DingTalk documents no limit
MAX_TITLE = 256  # characters of a title to search: a long search would block the triggerer's event loop
MAX_CONFERENCE_ID_LENGTH = 256
NAMES = ("conference_id", "room_code", "schedule_conference_id")  # the parameters that can name a meeting

_SEGMENT = re.compile(rf"(?!(\.{{1,2}}|None)\Z){SEGMENT_CHAR}{{1,{MAX_CONFERENCE_ID_LENGTH}}}")
_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015]+")
_MAX_LISTED = 5


class ConferenceStatus(str, Enum):
    """The status of a meeting."""

    NOT_STARTED = "not_started"
    STARTED = "started"
    ENDED = "ended"


_STATUS: Mapping[int | None, ConferenceStatus] = {  # by DingTalk's numbers
    0: ConferenceStatus.NOT_STARTED,
    1: ConferenceStatus.ENDED,
    2: ConferenceStatus.STARTED,
}


def _status_of(content: Mapping[str, Any], name: str) -> ConferenceStatus | None:
    return _STATUS.get(number_of(content, name))


def _title_of(content: Mapping[str, Any], name: str) -> str:
    return text_of(content, name) or ""


@dataclass(frozen=True)
class Meeting(Record):
    """What calls and events both say about a meeting; see :class:`Conference`."""

    what: ClassVar[str] = "a meeting"

    conference_id: str = json_field(text_of, "conferenceId", needed="conferenceId")  #: Its conferenceId.
    title: str | None = json_field(text_of, "title")
    status: ConferenceStatus | None = json_field(_status_of, "status")
    room_code: str | None = json_field(text_of, "roomCode")  #: What a person sees in DingTalk (会议号).
    start_time: datetime | None = json_field(moment_of, "startTime")  #: When it started; an aware datetime.
    end_time: datetime | None = json_field(moment_of, "endTime")  #: When it ended; an aware datetime.
    creator_id: str | None = json_field(text_of, "creatorId")  #: The unionId of its creator.
    creator_nick: str | None = json_field(text_of, "creatorNick")  #: The name of its creator.
    join_url: str | None = json_field(text_of, "externalLinkUrl")  #: The address to join it with a browser.
    #: The schedule it belongs to.
    schedule_conference_id: str | None = json_field(text_of, "scheduleConferenceId")
    biz_type: str | None = json_field(text_of, "bizType")  #: ``0`` instant, ``3`` scheduled, ``audio_conf``.


@dataclass(frozen=True)
class Conference(Meeting):
    """A meeting as DingTalk describes it. A value that the response does not give is None."""

    title: str = json_field(_title_of, "title")  #: Its title.
    #: Whether it is running.
    status: ConferenceStatus = json_field(_status_of, "status", needed="a known status")

    def __str__(self) -> str:
        """Name the meeting in a message."""
        return f"{self.conference_id} ({self.title[:60]!r}, {self.status.value})"


@dataclass(frozen=True)
class ConferenceFilter:
    """Selects meetings by title and creator.

    :param title_pattern: a regular expression that must match somewhere in the title; ``^`` is its beginning.
        None selects any title.
    :param creator_id: the unionId of the creator; None selects any creator.
    :raises InvalidInputError: a value is not a string, is blank or ``"None"`` (which would select every
        meeting by mistake), or is not a regular expression.
    """

    title_pattern: str | None = None
    creator_id: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.title_pattern, re.Pattern):
            raise e.InvalidInputError(
                "title_pattern: expected a string, got a compiled pattern; pass pattern.pattern"
            )
        for name in ("title_pattern", "creator_id"):
            if (value := getattr(self, name)) is not None:
                check_text(name, value)
        try:
            re.compile(self.title_pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise e.InvalidInputError(
                f"title_pattern: {shown(self.title_pattern)} is not a regular expression: {error}"
            ) from None

    def takes(self, title: str | None, creator_id: str | None) -> bool:
        """Return whether a meeting of this title and creator is selected."""
        if self.creator_id is not None and creator_id != self.creator_id:
            return False
        return self.title_pattern is None or bool(re.search(self.title_pattern, (title or "")[:MAX_TITLE]))


# The ways to name a meeting


@dataclass(frozen=True)
class Reference:
    """A meeting, by one of the parameters that can name it. Only here is a value for a path checked.

    DingTalk's SDK turns a conference id of ``a/../b`` into ``b``. Here such a value is an error.

    :param name: ``conference_id``, ``room_code`` or ``schedule_conference_id``.
    :raises InvalidConferenceIdError: the value is not one path segment.
    """

    name: str
    value: str

    def __post_init__(self) -> None:
        if isinstance(self.value, str) and _SEGMENT.fullmatch(self.value):
            return
        text = check_text(self.name, self.value, e.InvalidConferenceIdError)
        if len(text) > MAX_CONFERENCE_ID_LENGTH:
            problem = f"it has {len(text)} characters, more than {MAX_CONFERENCE_ID_LENGTH}"
        elif text in {".", ".."}:
            problem = f"{text!r} would change the path of the call"
        else:
            wrong = next(char for char in text if not re.match(SEGMENT_CHAR, char))
            problem = f"{shown(text)} has {wrong!a}, which cannot stand in a {self.name.replace('_', ' ')}"
            if wrong in "[{":
                problem += ", as if a template rendered a list or an XCom as text: an XComArg keeps it one"
        raise e.InvalidConferenceIdError(
            f"{self.name}: {problem}; conference_id takes a meeting's conferenceId, room_code a room code as "
            "DingTalk shows it, schedule_conference_id a schedule's scheduleConferenceId"
        )


def check_reference(
    conference_id: object = None, room_code: object = None, schedule_conference_id: object = None
) -> Reference:
    """Return the reference that a user gave, or that a template rendered.

    :param conference_id: a conferenceId, or a dict with one: an XCom, or the payload of an event.
    :param room_code: a room code, with or without spaces and dashes. It may be an int.
    :param schedule_conference_id: a scheduleConferenceId. It may be an int.
    :raises InvalidConferenceIdError: none or several are given, or the value is not one path segment.
    """
    named = dict(zip(NAMES, (conference_id, room_code, schedule_conference_id), strict=True))
    name = check_given_name(named)
    value = named[name]
    if value is None:
        raise e.InvalidConferenceIdError(
            "conference_id: it is missing, or a template or XCom rendered to None; "
            "give it, a room_code or a schedule_conference_id"
        )
    if name != "conference_id":
        value = digits_of(value)
    elif isinstance(value, Mapping):
        value = conference_id_in(value)
        if isinstance(value, Mapping):
            keys = ", ".join(map(shown, list(value)[:10])) or "none"
            raise e.InvalidConferenceIdError(
                "conference_id: expected a dict with a conference_id, got one with no value for it; "
                f"its keys: {keys}"
            )
    if isinstance(value, str):
        value = plain(value)
        value = _SEPARATORS.sub("", value) if name == "room_code" else value
    return Reference(name, value)  # type: ignore[arg-type]  # the reference checks it


def check_named(room_code: object = None, schedule_conference_id: object = None) -> Reference:
    """Return the reference by the parameter that is given; see :func:`check_reference`."""
    if room_code is None and schedule_conference_id is None:
        raise e.InvalidConferenceIdError("room_code: it is missing; give it, or a schedule_conference_id")
    return check_reference(room_code=room_code, schedule_conference_id=schedule_conference_id)


def check_conference_ids(conference_ids: object) -> list[Reference]:
    """Return the meetings of a collection of ids, without duplicates; see :func:`check_reference`."""
    if isinstance(conference_ids, (str, bytes, Mapping)) or not isinstance(conference_ids, Iterable):
        raise e.InvalidConferenceIdError(
            f"conference_ids: expected a list of conferenceIds, got a {type(conference_ids).__name__}"
        )
    meetings: dict[Reference, None] = {}
    for number, conference_id in enumerate(conference_ids):
        try:
            meetings[check_reference(conference_id)] = None
        except e.InvalidConferenceIdError as error:  # noqa: PERF203
            raise e.InvalidConferenceIdError(f"number {number} of the list, {error.message}") from None
    return list(meetings)


def check_given_name(named: Mapping[str, object]) -> str:
    """Return the name of the parameter that is given; that of the first one, if all are None.

    :raises InvalidConferenceIdError: several are given, or a list of room codes or schedules.
    """
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise e.InvalidConferenceIdError(f"{' and '.join(given)} are given; give one of {', '.join(named)}")
    name = given[0] if given else next(iter(named))
    if name != "conference_id" and isinstance(named[name], (list, tuple, set)):
        raise e.InvalidConferenceIdError(
            f"{name}: it takes one, not a list; map the task over several, or find their conference ids first"
        )
    return name


def conference_id_in(value: Any) -> Any:
    """Return the conference id in a dict, such as the XCom of a lock; any other value unchanged."""
    found = value.get("conference_id") if isinstance(value, Mapping) else None
    return value if found is None else found


# Calls

_FIND = {"room_code": endpoints.FIND_BY_ROOM_CODE, "schedule_conference_id": endpoints.FIND_BY_SCHEDULE}


def conference_call(meeting: Reference) -> Call:
    """Return the call that reads one meeting by its ``conference_id``, as a :class:`Conference`."""
    return call_to(endpoints.GET_CONFERENCE, meeting.value, read=_read_conference)


def _read_conference(content: Mapping[str, Any]) -> Conference:
    return Conference.read(content.get("confInfo"))


def query_call(conference_ids: Sequence[str]) -> Call:
    """Return the call that reads which of at most :data:`BATCH` meetings are running, by id."""
    body = {"conferenceIdList": list(conference_ids)}
    return call_to(endpoints.QUERY_CONFERENCES, len(conference_ids), body=body, read=_read_running)


def _read_running(content: Mapping[str, Any]) -> dict[str, Conference]:
    listed = read_page(content, endpoints.QUERY_CONFERENCES.items, Conference.read).items
    return {one.conference_id: one for one in listed if one.status is ConferenceStatus.STARTED}


def list_call(meetings: Reference | None = None, *tokens: str, max_results: int = PAGE) -> Call:
    """Return the call for one page of a list of meetings; ``tokens`` as in :func:`~.calls.page_call`.

    :param meetings: a room code or a schedule; None for the running meetings of the organisation.
    """
    endpoint = _FIND[meetings.name] if meetings else endpoints.RUNNING_CONFERENCES
    return page_call(endpoint, meetings and meetings.value, tokens, max_results, Conference.read)


def page_of(reference: Reference) -> str:
    """Return the name of the documentation page on the call that finds the meeting."""
    return _FIND.get(reference.name, endpoints.GET_CONFERENCE).page or ""


# The running one of several meetings


def started_of(found: Iterable[Conference], reference: Reference) -> Conference | None:
    """Return the running meeting of a room code or schedule; None if none is running.

    :raises ConferenceNotRunningError: more than one is running.
    """
    running = [one for one in found if one.status is ConferenceStatus.STARTED]
    if len(running) > 1:
        raise _not_running(f"{len(running)} meetings are running", running, reference)
    return running[0] if running else None


def the_running(found: Sequence[Conference], reference: Reference) -> Conference:
    """Return the running meeting of a room code or schedule.

    :raises ConferenceNotRunningError: none is running, or more than one.
    """
    started = started_of(found, reference)
    if started is None:
        raise _not_running("no meeting is running", found, reference)
    return started


def reached(conference: Conference, wanted: ConferenceStatus) -> bool:
    """Return whether a meeting has the wanted status.

    :raises ConferenceClosedError: the meeting has ended, and will not start again.
    """
    if conference.status is not wanted and conference.status is ConferenceStatus.ENDED:
        raise e.ConferenceClosedError(f"{conference} will not start again", code="confClosed")
    return conference.status is wanted


def _not_running(what: str, listed: Sequence[Conference], reference: Reference) -> e.DingTalkError:
    names = ", ".join(map(str, listed[:_MAX_LISTED])) or "DingTalk lists none"
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return e.ConferenceNotRunningError(
        f"{what} under {reference.name} {reference.value}: {names}{more}", code="confNotRunning"
    )
