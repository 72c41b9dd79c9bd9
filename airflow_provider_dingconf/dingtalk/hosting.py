"""The calls of a host: create a meeting, close it, list its members; and their responses as typed values.

Source: `Create a meeting <https://help.dingtalk.io/open/development/create-a-video-conference>`__, `Close a
meeting <https://help.dingtalk.io/open/development/close-audio-video-conference>`__ and `Query the members of
a meeting <https://help.dingtalk.io/open/development/querying-video-conference-members>`__.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import Call, check_text, moment_of, shown, text_of
from airflow_provider_dingconf.dingtalk.conferences import listed_in, next_token_of, unreadable
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow_provider_dingconf.dingtalk.conferences import Reference

CREATE_PAGE = "create-a-video-conference"
CLOSE_PAGE = "close-audio-video-conference"
MEMBERS_PAGE = "querying-video-conference-members"

MEMBERS = 500
"""Members on one page: DingTalk's default is 128, and it documents no upper limit."""

_CONFERENCES = "/v1.0/conference/videoConferences"
_LONGEST = 10**15  # milliseconds that a timedelta can hold


@dataclass(frozen=True)
class CreatedConference:
    """A meeting that was just created. The host's password, which DingTalk sends as well, is not read.

    :param conference_id: its conferenceId.
    :param room_code: what a person sees in DingTalk (会议号).
    :param join_url: the address to join it with a browser.
    :param password: the meeting's password.
    """

    conference_id: str
    room_code: str | None = None
    join_url: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> CreatedConference:
        """Return the meeting in a response.

        :raises ResponseError: the response names no meeting.
        """
        conference_id = content.get("conferenceId")
        if not isinstance(conference_id, str) or not conference_id:
            raise unreadable("a new meeting without conferenceId")
        names = ("roomCode", "externalLinkUrl", "conferencePassword")
        return cls(conference_id, *(text_of(content, name) for name in names))


@dataclass(frozen=True)
class ConferenceMember:
    """Somebody who was invited to a meeting, is in it, or was; None is what the response does not say.

    :param union_id: their unionId.
    :param user_nick: their name.
    :param conference_id: the meeting's conferenceId.
    :param attend_status: 1 initialised, 2 being called, 3 in the meeting, 4 did not join, 5 removed, 6 left.
    :param join_time: when they joined; an aware datetime, like the end.
    :param leave_time: when they left.
    :param duration: how long they were in the meeting.
    :param host: whether they are the host.
    :param co_host: whether they are a co-host.
    :param outer_org_member: whether they belong to another organisation.
    :param pstn_join: whether they joined by telephone.
    :param job_number: their number in the organisation.
    """

    union_id: str | None
    user_nick: str | None
    conference_id: str | None = None
    attend_status: int | None = None
    join_time: datetime | None = None
    leave_time: datetime | None = None
    duration: timedelta | None = None
    host: bool = False
    co_host: bool = False
    outer_org_member: bool = False
    pstn_join: bool = False
    job_number: str | None = None

    @classmethod
    def read(cls, member: object) -> ConferenceMember:
        """Return the member in a JSON object of DingTalk's.

        :raises ResponseError: the object is no member.
        """
        if not isinstance(member, dict):
            raise unreadable("a member that is no object")
        status, milliseconds = member.get("attendStatus"), member.get("duration")
        counted = type(milliseconds) is int and 0 <= milliseconds < _LONGEST
        return cls(
            text_of(member, "unionId"),
            text_of(member, "userNick"),
            text_of(member, "conferenceId"),
            status if type(status) is int else None,
            moment_of(member, "joinTime"),
            moment_of(member, "leaveTime"),
            timedelta(milliseconds=milliseconds) if counted else None,  # type: ignore[arg-type]
            host=member.get("host") is True,
            co_host=member.get("coHost") is True,
            outer_org_member=member.get("outerOrgMember") is True,
            pstn_join=member.get("pstnJoin") is True,
            job_number=text_of(member, "jobNumber"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the member as plain values for an XCom: times in ISO 8601, the duration in seconds."""
        return {name: _plain(value) for name, value in vars(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.isoformat() if isinstance(value, datetime) else value


@dataclass(frozen=True)
class MemberPage:
    """One page of the members of a meeting.

    :param next_token: what the next page is asked for with; None on the last page.
    """

    members: tuple[ConferenceMember, ...]
    next_token: str | None

    @classmethod
    def read(cls, content: Mapping[str, Any], tokens: Sequence[str] = ()) -> MemberPage:
        """Return the page in a response.

        :param tokens: the tokens of the pages before.
        :raises ResponseError: the response is not as documented, or the list is endless.
        """
        members = tuple(map(ConferenceMember.read, listed_in(content, "memberModels")))
        return cls(members, next_token_of(content, tokens))


def create_call(
    title: object, creator_id: object, invite: object = None, *, invite_creator: bool = True
) -> Call:
    """Return the call that creates a meeting; its response is read as a :class:`CreatedConference`.

    The call cannot be repeated: if its response is lost, a second one would create a second meeting.
    Source: `Create a meeting <https://help.dingtalk.io/open/development/create-a-video-conference>`__.

    :param title: the title; DingTalk cuts it after 50 characters and refuses more than 256.
    :param creator_id: the unionId of the creator, who is the host.
    :param invite: the unionIds of those whom DingTalk invites; None for nobody.
    :param invite_creator: whether DingTalk invites the creator, too (``inviteCaller``).
    :raises InvalidInputError: a value is missing or of another type.
    """
    body: dict[str, Any] = {"confTitle": check_text("title", title), "inviteCaller": invite_creator}
    if invite is not None:
        if not isinstance(invite, (list, tuple)):
            raise InvalidInputError(f"invite: expected a list of unionIds, got {shown(invite)}")
        body["inviteUserIds"] = [check_text("invite", one) for one in invite]
    body["userId"] = check_text("creator_id", creator_id)
    return Call(
        "create a meeting",
        "POST",
        _CONFERENCES,
        body,
        page=CREATE_PAGE,
        kind="create_conference",
        repeatable=False,
        read=CreatedConference.read,
    )


def close_call(meeting: Reference, creator_id: object) -> Call:
    """Return the call that closes a meeting, which only its host may.

    Source: `Close a meeting <https://help.dingtalk.io/open/development/close-audio-video-conference>`__.

    :param meeting: the meeting by its ``conference_id``.
    :param creator_id: the unionId of the host.
    :raises InvalidInputError: a value is missing or of another type.
    """
    params = {"unionId": check_text("creator_id", creator_id)}
    path = f"{_CONFERENCES}/{meeting.conference_id}"
    return Call(
        f"close {meeting.conference_id}",
        "DELETE",
        path,
        params=params,
        page=CLOSE_PAGE,
        kind="close_conference",
    )


def members_call(meeting: Reference, *tokens: str) -> Call:
    """Return the call for one page of the members of a meeting; it is read as a :class:`MemberPage`.

    Source: `Query the members of a meeting
    <https://help.dingtalk.io/open/development/querying-video-conference-members>`__.

    :param meeting: the meeting by its ``conference_id``.
    :param tokens: the ``next_token`` of every page before; none for the first page.
    """
    params: dict[str, Any] = {"maxResults": MEMBERS}
    if tokens:
        params["nextToken"] = tokens[-1]
    path, read = f"{_CONFERENCES}/{meeting.conference_id}/members", partial(MemberPage.read, tokens=tokens)
    name = f"members of {meeting.conference_id}"
    return Call(name, "GET", path, params=params, page=MEMBERS_PAGE, kind="conference_members", read=read)
