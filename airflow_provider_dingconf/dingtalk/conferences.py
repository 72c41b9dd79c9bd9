"""Meetings: what names one, the calls that read them, and their responses as typed values.

Source: `Query a meeting
<https://help.dingtalk.io/open/development/querying-video-conference-information>`__ and the pages beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import (
    Call,
    check_segment,
    check_text,
    digits_of,
    moment_of,
    shown,
    text_of,
)
from airflow_provider_dingconf.dingtalk.errors import (
    ConferenceClosedError,
    ConferenceNotRunningError,
    InvalidConferenceIdError,
    InvalidInputError,
    ResponseError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BATCH = 100
"""Meetings in one batch query; DingTalk documents no limit."""

PAGE = 20
"""Meetings on one page of a list; DingTalk documents no limit."""

MAX_TITLE = 256
"""Characters of a title that a pattern is searched in: the triggerer's one event loop searches, too."""

_CONFERENCES = "/v1.0/conference/videoConferences"
_SCHEDULE_PAGE = "query-appointment-meeting-history-meeting-information"
_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015]+")
_MAX_LISTED = 5


class ConferenceStatus(str, Enum):
    """The status of a meeting."""

    NOT_STARTED = "not_started"
    STARTED = "started"
    ENDED = "ended"


STATUS: Mapping[int | None, ConferenceStatus] = {
    0: ConferenceStatus.NOT_STARTED,
    1: ConferenceStatus.ENDED,
    2: ConferenceStatus.STARTED,
}
"""The meaning of DingTalk's numbers."""


def facts_of(meeting: Mapping[str, Any]) -> dict[str, Any]:
    """Return what calls and events say of a meeting in the same way, by the names used here."""
    return {
        "room_code": text_of(meeting, "roomCode"),
        "start_time": moment_of(meeting, "startTime"),
        "end_time": moment_of(meeting, "endTime"),
        "creator_id": text_of(meeting, "creatorId"),
        "creator_nick": text_of(meeting, "creatorNick"),
        "join_url": text_of(meeting, "externalLinkUrl"),
        "schedule_conference_id": text_of(meeting, "scheduleConferenceId"),
        "biz_type": text_of(meeting, "bizType"),
    }


@dataclass(frozen=True)
class Conference:
    """A meeting as DingTalk describes it; None is what the response does not say.

    :param conference_id: its conferenceId.
    :param title: its title.
    :param status: whether it is running.
    :param room_code: what a person sees in DingTalk (会议号).
    :param start_time: when it started; an aware datetime, like the end.
    :param end_time: when it ended.
    :param creator_id: the unionId of its creator.
    :param creator_nick: the name of its creator.
    :param join_url: the address to join it with a browser.
    :param schedule_conference_id: the schedule it belongs to.
    :param biz_type: ``0`` instant, ``3`` scheduled, ``audio_conf``.
    """

    conference_id: str
    title: str
    status: ConferenceStatus
    room_code: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    creator_id: str | None = None
    creator_nick: str | None = None
    join_url: str | None = None
    schedule_conference_id: str | None = None
    biz_type: str | None = None

    @classmethod
    def read(cls, meeting: object) -> Conference:
        """Return the meeting in a JSON object of DingTalk's.

        :raises ResponseError: the object is no meeting.
        """
        if not isinstance(meeting, dict) or not isinstance(meeting.get("conferenceId"), str):
            raise unreadable("a meeting without conferenceId")
        number = meeting.get("status")
        status = STATUS.get(number) if type(number) is int else None
        if status is None:
            raise unreadable("a meeting of no known status")
        title = text_of(meeting, "title") or ""
        return cls(meeting["conferenceId"], title, status, **facts_of(meeting))

    def as_dict(self) -> dict[str, Any]:
        """Return the meeting as plain values for an XCom, times in ISO 8601."""
        values = {**vars(self), "status": self.status.value}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
        }

    def __str__(self) -> str:
        """Name the meeting in a message."""
        return f"{self.conference_id} ({self.title[:60]!r}, {self.status.value})"


@dataclass(frozen=True)
class ConferenceFilter:
    """Selects meetings by title and creator.

    :param title_pattern: a regular expression to be found in the title, ``^`` at its beginning. None: any.
    :param creator_id: the unionId of the creator. None: any.
    :raises InvalidInputError: a value is not a text, is empty or ``None`` (which would take any meeting by
        mistake), or is not a regular expression.
    """

    title_pattern: str | None = None
    creator_id: str | None = None

    def __post_init__(self) -> None:
        """Check both values."""
        if isinstance(self.title_pattern, re.Pattern):
            raise InvalidInputError(
                "title_pattern: expected a string, got a compiled pattern; pass pattern.pattern"
            )
        for name, value in vars(self).items():
            if value is not None:
                check_text(name, value)
        try:
            re.compile(self.title_pattern or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidInputError(
                f"title_pattern: {shown(self.title_pattern)} is not a regular expression: {error}"
            ) from None

    def takes(self, title: str | None, creator_id: str | None) -> bool:
        """Return whether a meeting of this title and creator is selected."""
        if self.creator_id is not None and creator_id != self.creator_id:
            return False
        return self.title_pattern is None or bool(re.search(self.title_pattern, (title or "")[:MAX_TITLE]))


# What names a meeting


@dataclass(frozen=True)
class Reference:
    """A meeting by the parameter that names it. A reference holds nothing but one path segment.

    :param name: ``conference_id``, ``room_code`` or ``schedule_conference_id``.
    :param value: the parameter's value.
    :raises InvalidConferenceIdError: the value is not one path segment.
    """

    name: str
    value: str

    def __post_init__(self) -> None:
        """Check the value: the one place for all that goes into the path of a call."""
        check_segment(self.name, self.value)

    @property
    def conference_id(self) -> str:
        """The conferenceId.

        :raises InvalidInputError: the reference is a room code or a schedule, which has no conferenceId yet.
        """
        if self.name != "conference_id":
            raise InvalidInputError(f"{self.name}: find the meeting first; this call takes a conference_id")
        return self.value


def check_reference(
    conference_id: object = None, room_code: object = None, schedule_conference_id: object = None
) -> Reference:
    """Return the reference that a user gave, also one that a template rendered to a Python value.

    :param conference_id: a conferenceId, or a dict that has it: an XCom, the payload of an event.
    :param room_code: the room code, also with the spaces and dashes with which DingTalk shows it.
    :param schedule_conference_id: a scheduleConferenceId. It and a room code may be ints.
    :raises InvalidConferenceIdError: none or several are given, or the value is not one path segment.
    """
    named = {"conference_id": conference_id, "room_code": room_code}
    named["schedule_conference_id"] = schedule_conference_id
    name = given_name(named)
    value = named[name]
    if value is None:
        raise InvalidConferenceIdError(
            "conference_id: it is missing, or a template or XCom rendered to None; "
            "give it, a room_code or a schedule_conference_id"
        )
    value = conference_id_in(value) if name == "conference_id" else digits_of(value)
    if name == "conference_id" and isinstance(value, dict):
        keys = ", ".join(map(shown, list(value)[:10])) or "none"
        raise InvalidConferenceIdError(
            f"{name}: expected a dict with a conference_id, got one with no value for it; its keys: {keys}"
        )
    if name == "room_code" and isinstance(value, str):
        value = _SEPARATORS.sub("", value)
    return Reference(name, value)  # type: ignore[arg-type]  # the reference checks it


def check_named(room_code: object = None, schedule_conference_id: object = None) -> Reference:
    """Return the one of the two that is given; see :func:`check_reference`."""
    if room_code is None and schedule_conference_id is None:
        raise InvalidConferenceIdError("room_code: it is missing; give it, or a schedule_conference_id")
    return check_reference(room_code=room_code, schedule_conference_id=schedule_conference_id)


def check_conference_ids(conference_ids: object) -> list[Reference]:
    """Return the meetings, each once, if every id is valid.

    :raises InvalidConferenceIdError: they are no collection of ids, or one is not one path segment.
    """
    if isinstance(conference_ids, (str, bytes)) or not hasattr(conference_ids, "__iter__"):
        raise InvalidConferenceIdError(
            f"conference_ids: expected a list of conferenceIds, got a {type(conference_ids).__name__}"
        )
    meetings: dict[Reference, None] = {}
    for number, conference_id in enumerate(conference_ids):
        try:
            meetings[check_reference(conference_id)] = None
        except InvalidConferenceIdError as error:  # noqa: PERF203
            raise InvalidConferenceIdError(f"number {number} of the list, {error.message}") from None
    return list(meetings)


def given_name(named: Mapping[str, object]) -> str:
    """Return which of the parameters that name a meeting is given; the first one, if all are None.

    :raises InvalidConferenceIdError: several are given.
    """
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise InvalidConferenceIdError(f"{' and '.join(given)} are given; give one of {', '.join(named)}")
    return given[0] if given else next(iter(named))


def conference_id_in(value: Any) -> Any:
    """Return the conference id in a dict, such as the XCom of a lock; any other value unchanged."""
    found = value.get("conference_id") if isinstance(value, dict) else None
    return value if found is None else found


# Calls


def conference_call(meeting: Reference) -> Call:
    """Return the call that reads one meeting, named by its ``conference_id``.

    Source: `Query a meeting
    <https://help.dingtalk.io/open/development/querying-video-conference-information>`__.
    """
    path, page = f"{_CONFERENCES}/{meeting.conference_id}", "querying-video-conference-information"
    name = f"query {meeting.conference_id}"
    return Call(name, "GET", path, page=page, kind="get_conference", read=_read_conference)


def query_call(conference_ids: Sequence[str]) -> Call:
    """Return the call that says which of at most :data:`BATCH` meetings are running, by id.

    Source: `Query meetings
    <https://help.dingtalk.io/open/development/batch-query-of-video-conference-information>`__.
    """
    name, body = f"query {len(conference_ids)} meetings", {"conferenceIdList": list(conference_ids)}
    page = "batch-query-of-video-conference-information"
    path = f"{_CONFERENCES}/query"
    return Call(name, "POST", path, body, page=page, kind="query_conferences", read=_read_running)


def list_call(meetings: Reference | None = None, *tokens: str, max_results: int = PAGE) -> Call:
    """Return the call for one page of a list of meetings; its response is read as a :class:`Page`.

    Source: `Query the running meetings of an organisation
    <https://help.dingtalk.io/open/development/api-queryorgconferencelist>`__, `the meetings of a room code
    <https://help.dingtalk.io/open/development/api-queryconferenceinfobyroomcode>`__ and `of a schedule
    <https://help.dingtalk.io/open/development/query-appointment-meeting-history-meeting-information>`__.

    :param meetings: a room code or a schedule; None for the running meetings of the organisation.
    :param tokens: the ``next_token`` of every page before; none for the first page.
    :param max_results: meetings on the page.
    """
    name, path, page = "running meetings", "/v1.0/conference/orgConferences", "api-queryorgconferencelist"
    kind = f"find_by_{meetings.name}" if meetings else "running_conferences"
    if meetings and meetings.name == "room_code":
        name, page = f"meetings of room code {meetings.value}", "api-queryconferenceinfobyroomcode"
        path = f"/v1.0/conference/roomCodes/{meetings.value}/infos"
    elif meetings:
        path, page = f"{_CONFERENCES}/scheduleConferences/{meetings.value}", _SCHEDULE_PAGE
        name = f"meetings of schedule {meetings.value}"
    params: dict[str, Any] = {"maxResults": max_results}
    if tokens:
        params["nextToken"] = tokens[-1]
    read = partial(Page.read, tokens=tokens)
    return Call(name, "GET", path, params=params, page=page, kind=kind, read=read)


def page_of(reference: Reference) -> str:
    """Return the name of the page of DingTalk's documentation on the call that reads a reference."""
    call = conference_call if reference.name == "conference_id" else list_call
    return call(reference).page or ""


# Responses


def _read_conference(content: Mapping[str, Any]) -> Conference:
    return Conference.read(content.get("confInfo"))


def _read_running(content: Mapping[str, Any]) -> dict[str, Conference]:
    listed = map(Conference.read, listed_in(content, "infos"))
    return {one.conference_id: one for one in listed if one.status is ConferenceStatus.STARTED}


@dataclass(frozen=True)
class Page:
    """One page of a list of meetings.

    :param next_token: what the next page is asked for with; None on the last page.
    """

    conferences: tuple[Conference, ...]
    next_token: str | None

    @classmethod
    def read(cls, content: Mapping[str, Any], tokens: Sequence[str] = ()) -> Page:
        """Return the page in a response.

        :param tokens: the tokens of the pages before.
        :raises ResponseError: the response is not as documented, or the list is endless.
        """
        key = "onGoingConfList" if "onGoingConfList" in content else "conferenceList"
        conferences = tuple(map(Conference.read, listed_in(content, key)))
        return cls(conferences, next_token_of(content, tokens))


def next_token_of(content: Mapping[str, Any], tokens: Sequence[str]) -> str | None:
    """Return what the next page is asked for with; None on the last page.

    A token continues the list unless ``hasMore`` is false: of some lists, DingTalk sends no ``hasMore``.

    :param tokens: the tokens of the pages before; one of them again would be an endless list.
    :raises ResponseError: the list is endless.
    """
    token = None if content.get("hasMore") is False else text_of(content, "nextToken")
    if token in tokens:
        raise unreadable("a page that follows itself")
    return token


def started_of(found: Iterable[Conference], reference: Reference) -> Conference | None:
    """Return the one meeting that is running; None if none is.

    :param found: the meetings of a room code or schedule.
    :param reference: the room code or schedule, for the message.
    :raises ConferenceNotRunningError: more than one is running.
    """
    running = [one for one in found if one.status is ConferenceStatus.STARTED]
    if len(running) > 1:
        raise _not_running(f"{len(running)} meetings are running", running, reference)
    return running[0] if running else None


def the_running(found: Sequence[Conference], reference: Reference) -> Conference:
    """Return the one meeting that is running; parameters as for :func:`started_of`.

    :raises ConferenceNotRunningError: none is running, or more than one.
    """
    started = started_of(found, reference)
    if started is None:
        raise _not_running("no meeting is running", found, reference)
    return started


def reached(conference: Conference, wanted: ConferenceStatus) -> bool:
    """Return whether a meeting has the wanted status.

    :raises ConferenceClosedError: it has ended, and so will not start.
    """
    if conference.status is not wanted and conference.status is ConferenceStatus.ENDED:
        raise ConferenceClosedError(f"{conference} will not start any more", code="confClosed")
    return conference.status is wanted


def _not_running(what: str, listed: Sequence[Conference], reference: Reference) -> ConferenceNotRunningError:
    names = ", ".join(map(str, listed[:_MAX_LISTED])) or "none is known"
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return ConferenceNotRunningError(
        f"{what} under {reference.name} {reference.value}: {names}{more}", code="confNotRunning"
    )


def listed_in(content: Mapping[str, Any], key: str) -> list[object]:
    """Return a list in a response; a missing one is empty."""
    listed = content.get(key)
    if not isinstance(listed, (list, type(None))):
        raise unreadable(f"{key} that is no list")
    return listed or []


def unreadable(what: str) -> ResponseError:
    """Return the error of a response that is not as documented."""
    return ResponseError(f"the response holds {what}", code="unreadableAnswer")
