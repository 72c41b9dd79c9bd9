"""Meetings: what happens in them, and how DingTalk describes them, exactly as documented."""

import secrets
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, get_args

from airflow_provider_dingconf.dingtalk.events import SCENES
from airflow_provider_dingconf.sandbox.faults import RESERVED, Status
from airflow_provider_dingconf.sandbox.stream import Streams, now

_STATUS: Final = {"not_started": 0, "ended": 1, "started": 2}
_INSTANT, _SCHEDULED = "0", "3"
_IN_MEETING, _HAS_LEFT = 3, 6

_BASIC: Final = "conferenceId title roomCode status startTime endTime"
_CREATOR: Final = f"{_BASIC} creatorId creatorNick bizType"
_DETAILS: Final = f"{_CREATOR} externalLinkUrl scheduleConferenceId confDuration"
_COUNTS: Final = "activeNum attendNum invitedNum"
_RECORDS: Final = "cloudRecordStatus cloudRecordOwnerUnionId minutesStatus minutesOwnerUnionId"

FIELDS: Final = {
    "create": "conferenceId roomCode externalLinkUrl conferencePassword hostPassword phoneNumbers",
    "info": f"{_DETAILS} {_COUNTS} {_RECORDS} extensionAppSettings",
    "query": "conferenceId title status startTime mediaStatus userList",
    "list": _CREATOR,
    "roomCode": _DETAILS,
    "schedule": _BASIC,
    "event": f"{_DETAILS} {_COUNTS}",
}
"""The fields with which each call, and an event, describes a meeting; those without a value are omitted."""


def _digits(count: int) -> str:
    return str(secrets.choice(range(10 ** (count - 1), 10**count)))


@dataclass
class Conference:
    """A meeting. This is the sandbox's own object, which calls change. Times are in milliseconds."""

    conference_id: str
    title: str
    room_code: str = field(default_factory=lambda: _digits(10))
    status: Status = "not_started"
    locked: bool = False
    participants: list[str] = field(default_factory=list)  # who is or was in the meeting
    joined: dict[str, int] = field(default_factory=dict)  # when they first joined
    left: dict[str, int] = field(default_factory=dict)  # when they left, unless they are still in it
    invited: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # who could not join, once for each attempt
    start_time: int | None = None
    end_time: int | None = None
    creator_id: str = "sandbox"
    schedule_conference_id: str | None = None
    password: str = field(default_factory=lambda: _digits(6))
    host_password: str = field(default_factory=lambda: _digits(6))

    def has(self, user: str) -> bool:
        """Return whether a user is in the meeting now."""
        return user in self.participants and user not in self.left

    def refusal(self, user: str) -> str | None:
        """Return why a user cannot join now: ``not_started``, ``ended``, ``locked``; None if they can."""
        if self.status != "started":
            return self.status
        return "locked" if self.locked and not self.has(user) else None

    def described(self, call: str) -> dict[str, Any]:
        """Return the meeting as a call, one of :data:`FIELDS`, describes it."""
        active = [user for user in self.participants if self.has(user)]
        user = {"attendStatus": _IN_MEETING, "cameraStatus": 0, "micStatus": 0, "rejectDescription": ""}
        known = {
            "conferenceId": self.conference_id,
            "title": self.title,
            "roomCode": self.room_code,
            "status": _STATUS[self.status],
            "startTime": self.start_time,
            "creatorId": self.creator_id,
            "creatorNick": self.creator_id.capitalize(),
            "bizType": _SCHEDULED if self.schedule_conference_id else _INSTANT,
            "externalLinkUrl": f"https://meeting.dingtalk.invalid/j/{self.room_code}",
            "conferencePassword": self.password,
            "hostPassword": self.host_password,
            "phoneNumbers": ["+86 571 0000 0000"],
            "activeNum": len(active),
            "attendNum": len(self.participants),
            "invitedNum": len(self.invited),
            "userList": [{"userId": name, "nick": name, **user} for name in active],
            "extensionAppSettings": [],
            **dict.fromkeys(("mediaStatus", "cloudRecordStatus", "minutesStatus"), 0),
            **dict.fromkeys(("cloudRecordOwnerUnionId", "minutesOwnerUnionId"), ""),
        }
        if self.schedule_conference_id is not None:
            known["scheduleConferenceId"] = self.schedule_conference_id
        if self.start_time and self.end_time:
            known |= {"endTime": self.end_time, "confDuration": self.end_time - self.start_time}
        return {name: known[name] for name in FIELDS[call].split() if name in known}

    def member(self, user: str, id_field: str = "unionId") -> dict[str, Any]:
        """Return somebody who is or was in the meeting, as DingTalk describes them."""
        joined, left = self.joined[user], self.left.get(user)
        return {
            id_field: user,
            "userNick": user,
            "conferenceId": self.conference_id,
            "attendStatus": _HAS_LEFT if left else _IN_MEETING,
            "joinTime": joined,
            **({"leaveTime": left} if left else {}),
            "duration": (left or now()) - joined,
            "host": user == self.creator_id,
            **dict.fromkeys(("coHost", "outerOrgMember", "pstnJoin"), False),
            "jobNumber": "",
        }


class Meetings(Streams):
    """The meetings. They push an event when one starts or ends, and when somebody joins or leaves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.conferences: dict[str, Conference] = {}
        self._sequence = count(1)

    def create_conference(
        self,
        title: str = "Meeting",
        *,
        conference_id: str | None = None,
        status: Status = "started",
        room_code: str | None = None,
        creator_id: str = "sandbox",
        schedule_conference_id: str | None = None,
        invited: list[str] | None = None,
    ) -> str:
        """Create a meeting and return its id.

        :param conference_id: the id; None for a new one in DingTalk's form.
        :param status: ``not_started``, ``started`` or ``ended``.
        :param room_code: the room code, which several meetings can have; None for a new one.
        :param creator_id: the unionId of the host.
        :raises ValueError: the id is in use, or the status is unknown.
        """
        if status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}, not {status!r}.")
        if conference_id in self.conferences or conference_id in RESERVED:
            raise ValueError(f"There is a meeting {conference_id!r} already.")
        conference = Conference(conference_id or secrets.token_hex(12), title, room_code or _digits(10))
        conference.creator_id, conference.schedule_conference_id = creator_id, schedule_conference_id
        conference.invited = invited or []
        self._add(conference, status)
        return conference.conference_id

    def _add(self, conference: Conference, status: Status) -> None:
        self.conferences[conference.conference_id] = conference
        if status != "not_started":
            self.start(conference.conference_id)
        if status == "ended":
            self.end(conference.conference_id)

    def conference(self, conference_id: str) -> Conference:
        """Return a meeting, which later calls change; raise KeyError if there is none."""
        if conference_id in RESERVED and conference_id not in self.conferences:
            reserved = RESERVED[conference_id]
            self._add(Conference(conference_id, reserved.rehearses), reserved.status)
        return self.conferences[conference_id]

    def start(self, conference_id: str) -> Conference:
        """Start a meeting, unless it is running, and return it; raise ValueError if it has ended."""
        conference = self.conference(conference_id)
        if conference.status == "ended":
            raise ValueError(f"The meeting {conference_id!r} has ended.")
        if conference.status == "not_started":
            conference.status, conference.start_time = "started", now()
            self._push("conference_created", conference)
        return conference

    def end(self, conference_id: str) -> Conference:
        """End a meeting and return it."""
        conference = self.conference(conference_id)
        if conference.status != "ended":
            conference.status, conference.end_time = "ended", now()
            conference.start_time = conference.start_time or conference.end_time
            conference.left = dict.fromkeys(conference.participants, conference.end_time) | conference.left
            self._push("conference_closed", conference)
        return conference

    def join(self, conference_id: str, user: str) -> bool:
        """Let a user try to join a meeting, and return whether that worked."""
        conference = self.conference(conference_id)
        if conference.refusal(user):
            conference.refused.append(user)
            return False
        if not conference.has(user):
            if conference.left.pop(user, None) is None:
                conference.participants.append(user)
                conference.joined[user] = now()
            self._push("user_join", conference, user)
        return True

    def leave(self, conference_id: str, user: str) -> Conference:
        """Let a user leave a meeting, if they are in it, and return the meeting."""
        conference = self.conference(conference_id)
        if conference.has(user):
            conference.left[user] = now()
            self._push("user_leave", conference, user)
        return conference

    def _push(self, scene: str, conference: Conference, user: str | None = None) -> None:
        """Push an event about a meeting, unless it is a reserved one."""
        if conference.conference_id in RESERVED:
            return
        about = {"statusSeqNum": next(self._sequence), "changeScene": scene}
        if user is None:
            about["openConfModel"] = conference.described("event")
        else:
            about["openMemberModels"] = [conference.member(user, "userId")]
        self.push_event(SCENES[scene], about)
