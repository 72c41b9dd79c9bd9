"""Meetings as DingTalk tells of them: the calls that read, and their answers as typed values.

Source: `Query a meeting <https://help.dingtalk.io/open/development/api-queryconferenceinfo>`__ and the pages
beside it.
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
    check_conference_id,
    check_segment,
    moment_of,
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
    from collections.abc import Generator, Iterable, Mapping, Sequence

BATCH = 100
"""Meetings in one batch query; DingTalk documents no limit."""

PAGE = 20
"""Meetings on one page of a list; DingTalk documents no limit."""

_CONFERENCES = "/v1.0/conference/videoConferences"
_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015]+")
_MOST_LISTED = 5


class ConferenceStatus(str, Enum):
    """Of a meeting."""

    NOT_STARTED = "not_started"
    STARTED = "started"
    ENDED = "ended"


STATUS: Mapping[object, ConferenceStatus] = {
    0: ConferenceStatus.NOT_STARTED,
    1: ConferenceStatus.ENDED,
    2: ConferenceStatus.STARTED,
}
"""What DingTalk's numbers stand for."""


def facts_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what DingTalk's calls and events tell of a meeting in the same way, by the names used here.

    :param told: the JSON object that tells of it.
    """
    return {
        "room_code": text_of(told, "roomCode"),
        "start_time": moment_of(told, "startTime"),
        "end_time": moment_of(told, "endTime"),
        "creator_id": text_of(told, "creatorId"),
        "creator_nick": text_of(told, "creatorNick"),
        "join_url": text_of(told, "externalLinkUrl"),
        "schedule_conference_id": text_of(told, "scheduleConferenceId"),
        "biz_type": text_of(told, "bizType"),
    }


@dataclass(frozen=True)
class Conference:
    """A meeting, as DingTalk tells of it; None is what it did not tell.

    :param conference_id: its conferenceId.
    :param title: its title.
    :param status: whether it runs.
    :param room_code: what a person sees in DingTalk (会议号).
    :param start_time: when it started; an aware datetime, likewise the end.
    :param end_time: when it ended.
    :param creator_id: the unionId of who created it.
    :param creator_nick: the name of who created it.
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
    def read(cls, told: object) -> Conference:
        """Return the meeting that a JSON object of DingTalk's tells of.

        :raises ResponseError: it is no meeting.
        """
        if not isinstance(told, dict) or not isinstance(told.get("conferenceId"), str):
            raise _unreadable("a meeting without conferenceId")
        status = told.get("status")
        if not isinstance(status, int) or isinstance(status, bool) or status not in STATUS:
            raise _unreadable("a meeting of no known status")
        return cls(
            conference_id=told["conferenceId"],
            title=text_of(told, "title") or "",
            status=STATUS[status],
            **facts_of(told),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, times in ISO 8601: fit for an XCom."""

        def plain(value: Any) -> Any:
            if isinstance(value, datetime):
                return value.isoformat()
            return value.value if isinstance(value, Enum) else value

        return {name: plain(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        """Name it, for a message."""
        return f"{self.conference_id} ({self.title[:60]!r}, {self.status.value})"


@dataclass(frozen=True)
class ConferenceFilter:
    """Which meetings are meant.

    :param title_pattern: a regular expression to be found in the title; ``^`` is its beginning.
    :param creator_id: the unionId of the creator.
    :raises InvalidInputError: the pattern is no regular expression, or one of them is empty: that would take
        any meeting by mistake.
    """

    title_pattern: str | None = None
    creator_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, value in vars(self).items():
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise InvalidInputError(f"{name}: {value!r} is not a text; leave it out to take any")
        try:
            re.compile(self.title_pattern or "")
        except re.error as error:
            raise InvalidInputError(f"title_pattern: it is not a regular expression: {error}") from None

    def takes(self, title: str, creator_id: str | None) -> bool:
        """Return whether a meeting of this title and creator is meant."""
        return (self.title_pattern is None or bool(re.search(self.title_pattern, title))) and (
            self.creator_id is None or creator_id == self.creator_id
        )


@dataclass(frozen=True)
class Reference:
    """A meeting by the name it was given: which parameter named it, and its value."""

    name: str
    value: str


def check_reference(
    conference_id: object = None, room_code: object = None, schedule_conference_id: object = None
) -> Reference:
    """Return what a meeting is named by, once it is sound.

    A room code may have the spaces and dashes with which DingTalk shows it.

    :raises InvalidConferenceIdError: none or several are given, or it is not one path segment.
    """
    named = {"conference_id": conference_id, "room_code": room_code}
    named["schedule_conference_id"] = schedule_conference_id
    name = given_name(named)
    value = named[name]
    if name == "conference_id":
        return Reference(name, check_conference_id(value))
    if name == "room_code" and isinstance(value, str):
        value = _SEPARATORS.sub("", value)
    return Reference(name, check_segment(name, value))


def check_named(room_code: object = None, schedule_conference_id: object = None) -> Reference:
    """Return which of the two is given, once it is sound; as :func:`check_reference`."""
    if room_code is None and schedule_conference_id is None:
        raise InvalidConferenceIdError("room_code: it is missing; give it, or a schedule_conference_id")
    return check_reference(room_code=room_code, schedule_conference_id=schedule_conference_id)


def given_name(named: Mapping[str, object]) -> str:
    """Return which of the names of a meeting is given; the first one, where all are None.

    :raises InvalidConferenceIdError: several are given.
    """
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise InvalidConferenceIdError(f"{' and '.join(given)} are given; give one of {', '.join(named)}")
    return given[0] if given else next(iter(named))


def conference_id_in(value: Any) -> Any:
    """Return the conference id in the XCom of a task that found or locked a meeting; else the value."""
    return value.get("conference_id") if isinstance(value, dict) else value


# Calls


def conference_call(conference_id: str) -> Call:
    """Return the call that tells of one meeting.

    Source: `Query a meeting <https://help.dingtalk.io/open/development/api-queryconferenceinfo>`__.

    :raises InvalidConferenceIdError: the id is not one path segment.
    """
    return Call(
        name=f"query {conference_id}",
        method="GET",
        path=f"{_CONFERENCES}/{check_conference_id(conference_id)}",
        page="api-queryconferenceinfo",
        read=_read_conference,
    )


def query_call(conference_ids: Sequence[str]) -> Call:
    """Return the call that tells which of some meetings are running: at most :data:`BATCH` of them.

    Source: `Query meetings <https://help.dingtalk.io/open/development/api-queryconferenceinfobatch>`__.
    """
    return Call(
        name=f"query {len(conference_ids)} meetings",
        method="POST",
        path=f"{_CONFERENCES}/query",
        body={"conferenceIdList": list(conference_ids)},
        page="api-queryconferenceinfobatch",
        read=_read_running,
    )


def running_conferences_call(next_token: str | None = None, max_results: int = PAGE) -> Call:
    """Return the call that lists the running meetings of the organisation.

    Source: `Query the running meetings of an organisation
    <https://help.dingtalk.io/open/development/api-queryorgconferencelist>`__.

    :param next_token: where the page before ended; None for the first page.
    :param max_results: meetings on the page.
    """
    return _list_call(
        "running meetings",
        "/v1.0/conference/orgConferences",
        "api-queryorgconferencelist",
        next_token,
        max_results,
    )


def named_call(reference: Reference, next_token: str | None = None) -> Call:
    """Return the call that lists the meetings of a room code or of a schedule.

    Source: `Query the meetings of a room code
    <https://help.dingtalk.io/open/development/api-queryconferenceinfobyroomcode>`__ and `of a schedule
    <https://help.dingtalk.io/open/development/api-queryscheduleconferenceinfo>`__.
    """
    if reference.name == "room_code":
        return _list_call(
            f"meetings of room code {reference.value}",
            f"/v1.0/conference/roomCodes/{reference.value}/infos",
            "api-queryconferenceinfobyroomcode",
            next_token,
        )
    return _list_call(
        f"meetings of schedule {reference.value}",
        f"{_CONFERENCES}/scheduleConferences/{reference.value}",
        "api-queryscheduleconferenceinfo",
        next_token,
    )


def page_of(reference: Reference) -> str:
    """Return the name of the page of DingTalk's documentation on how a meeting is asked for."""
    named = reference.name != "conference_id"
    return (named_call(reference) if named else conference_call(reference.value)).page or ""


def _list_call(name: str, path: str, page: str, next_token: str | None, max_results: int = PAGE) -> Call:
    params: dict[str, Any] = {"maxResults": max_results}
    if next_token is not None:
        params["nextToken"] = next_token
    read = partial(Page.read, before=next_token)
    return Call(name=name, method="GET", path=path, params=params, page=page, read=read)


# Answers


def _read_conference(content: Mapping[str, Any]) -> Conference:
    """Return the meeting in the answer to :func:`conference_call`.

    :raises ResponseError: there is none.
    """
    return Conference.read(content.get("confInfo"))


def _read_running(content: Mapping[str, Any]) -> dict[str, Conference]:
    """Return the running meetings in the answer to :func:`query_call`, by id.

    :raises ResponseError: the answer is not what DingTalk documents.
    """
    listed = map(Conference.read, _listed(content, "infos"))
    return {one.conference_id: one for one in listed if one.status is ConferenceStatus.STARTED}


@dataclass(frozen=True)
class Page:
    """One page of a list of meetings.

    :param next_token: what the next page is asked with; None where this is the last one.
    """

    conferences: tuple[Conference, ...]
    next_token: str | None

    @classmethod
    def read(cls, content: Mapping[str, Any], before: str | None = None) -> Page:
        """Return the page in an answer.

        :param before: what the page was asked with.
        :raises ResponseError: the answer is not what DingTalk documents, or goes round in a circle.
        """
        key = next((key for key in ("onGoingConfList", "conferenceList") if key in content), "conferenceList")
        conferences = tuple(map(Conference.read, _listed(content, key)))
        token = text_of(content, "nextToken") if content.get("hasMore") is True else None
        if token is not None and token == before:
            raise _unreadable("a page that follows itself")
        return cls(conferences, token)


def conferences_of(reference: Reference) -> Generator[Call, Page, list[Conference]]:
    """Find the meetings of a room code or a schedule; driven as an exchange is.

    Yields the calls to make, is sent the pages that their answers hold, and returns the meetings.
    """
    found: list[Conference] = []
    token = None
    while True:
        page = yield named_call(reference, token)
        found += page.conferences
        token = page.next_token
        if token is None:
            return found


def started_of(found: Iterable[Conference], reference: Reference) -> Conference | None:
    """Return the one meeting that is running; None where none is.

    :param found: the meetings of a room code or schedule.
    :param reference: the name they were found by, for the message.
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
    """Return whether a meeting has the status that is waited for.

    :raises ConferenceClosedError: it has ended, and so will not start.
    """
    if conference.status is wanted:
        return True
    if conference.status is ConferenceStatus.ENDED:
        raise ConferenceClosedError(f"{conference} will not start any more", code="confClosed")
    return False


def _not_running(what: str, listed: Sequence[Conference], reference: Reference) -> ConferenceNotRunningError:
    shown = ", ".join(map(str, listed[:_MOST_LISTED])) or "none is known"
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return ConferenceNotRunningError(
        f"{what} under {reference.name} {reference.value}: {shown}{more}", code="confNotRunning"
    )


def _listed(content: Mapping[str, Any], key: str) -> list[object]:
    """Return a list of an answer; one that is missing is empty."""
    listed = content.get(key)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise _unreadable(f"{key} that is no list")
    return listed


def _unreadable(what: str) -> ResponseError:
    return ResponseError(f"the answer holds {what}", code="unreadableAnswer")
