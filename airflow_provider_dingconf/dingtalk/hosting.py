"""The calls that create a meeting, close it and list its members, and the responses as typed values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta  # noqa: TC003  # who reads a record's types finds it
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_dingconf.dingtalk.calls import Call, call_to, page_call
from airflow_provider_dingconf.dingtalk.endpoints import CLOSE, CREATE, LIST_MEMBERS
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.dingtalk.inputs import check_text, shown
from airflow_provider_dingconf.dingtalk.records import (
    Record,
    duration_of,
    flag_of,
    json_field,
    moment_of,
    number_of,
    text_of,
)

if TYPE_CHECKING:
    from airflow_provider_dingconf.dingtalk.conferences import Reference

MEMBERS = 500  # on one page: DingTalk's default is 128, and it documents no upper limit


@dataclass(frozen=True)
class CreatedConference(Record):
    """A new meeting. DingTalk sends the host's password as well, which is not read."""

    what: ClassVar[str] = "a new meeting"

    conference_id: str = json_field(text_of, "conferenceId", needed="conferenceId")
    room_code: str | None = json_field(text_of, "roomCode")
    join_url: str | None = json_field(text_of, "externalLinkUrl")
    password: str | None = json_field(text_of, "conferencePassword", repr=False)


@dataclass(frozen=True)
class ConferenceMember(Record):
    """Somebody who was invited to a meeting, is in it, or was in it. A value that is not given is None."""

    what: ClassVar[str] = "a member"

    union_id: str | None = json_field(text_of, "unionId")  #: Their unionId.
    user_nick: str | None = json_field(text_of, "userNick")  #: Their name.
    conference_id: str | None = json_field(text_of, "conferenceId")  #: The meeting's conferenceId.
    #: 1 invited, 2 being called, 3 in the meeting, 4 did not join, 5 removed, 6 left.
    attend_status: int | None = json_field(number_of, "attendStatus")
    join_time: datetime | None = json_field(moment_of, "joinTime")  #: When they joined; an aware datetime.
    leave_time: datetime | None = json_field(moment_of, "leaveTime")  #: When they left; an aware datetime.
    duration: timedelta | None = json_field(duration_of, "duration")  #: How long they were in the meeting.
    host: bool = json_field(flag_of, "host")  #: Whether they are the host.
    co_host: bool = json_field(flag_of, "coHost")  #: Whether they are a co-host.
    outer_org_member: bool = json_field(flag_of, "outerOrgMember")  #: Whether from another organisation.
    pstn_join: bool = json_field(flag_of, "pstnJoin")  #: Whether they joined by telephone.
    job_number: str | None = json_field(text_of, "jobNumber")  #: Their number in the organisation.


def create_call(
    title: object, creator_id: object, invite: object = None, *, invite_creator: bool = True
) -> Call:
    """Return the call that creates a meeting, and reads the response as a :class:`CreatedConference`.

    The call is not repeatable: after a lost response, a second call could create a second meeting. The
    parameters are those of ``CreateConferenceOperator``.
    """
    body: dict[str, Any] = {"confTitle": check_text("title", title), "inviteCaller": invite_creator}
    if invite is not None:
        if not isinstance(invite, (list, tuple)):
            raise InvalidInputError(f"invite: expected a list of unionIds, got {shown(invite)}")
        body["inviteUserIds"] = [check_text("invite", one) for one in invite]
    body["userId"] = check_text("creator_id", creator_id)
    return call_to(CREATE, body=body, read=CreatedConference.read)


def close_call(meeting: Reference, creator_id: object) -> Call:
    """Return the call that closes a meeting, by its ``conference_id`` and the unionId of its host."""
    return call_to(CLOSE, meeting.value, params={"unionId": check_text("creator_id", creator_id)})


def members_call(meeting: Reference, *tokens: str) -> Call:
    """Return the call for one page of the members of a meeting, by its ``conference_id``."""
    return page_call(LIST_MEMBERS, meeting.value, tokens, MEMBERS, ConferenceMember.read)
