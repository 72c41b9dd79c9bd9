"""What DingTalk says about a meeting: the fields of each call and event, exactly as documented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow_provider_dingconf.sandbox.state import now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_dingconf.sandbox.state import Conference

_STATUS: Final = {"not_started": 0, "ended": 1, "started": 2}
_INSTANT, _SCHEDULED = "0", "3"
_IN_MEETING, _HAS_LEFT = 3, 6

_BASIC: Final = "conferenceId title roomCode status startTime endTime"
_CREATOR: Final = f"{_BASIC} creatorId creatorNick bizType"
_DETAILS: Final = f"{_CREATOR} externalLinkUrl scheduleConferenceId confDuration"
_COUNTS: Final = "activeNum attendNum invitedNum"

FIELDS: Final[Mapping[str, list[str]]] = {
    name: fields.split()
    for name, fields in {
        "create": "conferenceId roomCode externalLinkUrl conferencePassword hostPassword phoneNumbers",
        "info": f"{_DETAILS} {_COUNTS} cloudRecordStatus cloudRecordOwnerUnionId minutesStatus"
        " minutesOwnerUnionId extensionAppSettings",
        "query": "conferenceId title status startTime mediaStatus userList",
        "list": _CREATOR,
        "roomCode": _DETAILS,
        "schedule": _BASIC,
        "event": f"{_DETAILS} {_COUNTS}",
    }.items()
}
"""What each call, and the event, says about a meeting: the fields that a meeting has, of these."""


def describe(conference: Conference, call: str) -> dict[str, Any]:
    """Return what a call, one of :data:`FIELDS`, says about a meeting."""
    known = _facts(conference)
    return {name: known[name] for name in FIELDS[call] if name in known}


def _facts(conference: Conference) -> dict[str, Any]:
    active = [user for user in conference.participants if conference.has(user)]
    camera = {"cameraStatus": 0, "micStatus": 0, "rejectDescription": ""}
    known = {
        "conferenceId": conference.conference_id,
        "title": conference.title,
        "roomCode": conference.room_code,
        "status": _STATUS[conference.status],
        "startTime": conference.start_time,
        "creatorId": conference.creator_id,
        "creatorNick": conference.creator_id.capitalize(),
        "bizType": _SCHEDULED if conference.schedule_conference_id else _INSTANT,
        "externalLinkUrl": f"https://meeting.dingtalk.invalid/j/{conference.room_code}",
        "conferencePassword": conference.password,
        "hostPassword": conference.host_password,
        "phoneNumbers": ["+86 571 0000 0000"],
        "activeNum": len(active),
        "attendNum": len(conference.participants),
        "invitedNum": len(conference.invited),
        "mediaStatus": 0,
        "userList": [
            {"userId": user, "nick": user, "attendStatus": _IN_MEETING, **camera} for user in active
        ],
        **dict.fromkeys(("cloudRecordStatus", "minutesStatus"), 0),
        **dict.fromkeys(("cloudRecordOwnerUnionId", "minutesOwnerUnionId"), ""),
        "extensionAppSettings": [],
    }
    if conference.schedule_conference_id:
        known["scheduleConferenceId"] = conference.schedule_conference_id
    if conference.start_time and conference.end_time:
        duration = conference.end_time - conference.start_time
        known |= {"endTime": conference.end_time, "confDuration": duration}
    return known


def member(conference: Conference, user: str) -> dict[str, Any]:
    """Return what DingTalk says about somebody who is or was in a meeting."""
    joined, left = conference.joined[user], conference.left.get(user)
    return {
        "unionId": user,
        "userNick": user,
        "conferenceId": conference.conference_id,
        "attendStatus": _HAS_LEFT if left else _IN_MEETING,
        "joinTime": joined,
        **({"leaveTime": left} if left else {}),
        "duration": (left or now()) - joined,
        "host": user == conference.creator_id,
        "coHost": False,
        "outerOrgMember": False,
        "pstnJoin": False,
        "jobNumber": "",
    }


def event_data(scene: str, conference: Conference, user: str | None, sequence: int) -> dict[str, Any]:
    """Return the data of the event of something that happened in a meeting."""
    about = {"statusSeqNum": sequence, "changeScene": scene}
    if user is None:
        return {"openConfModel": describe(conference, "event"), **about}
    known = member(conference, user)
    return {"openMemberModels": [{"userId": known.pop("unionId"), **known}], **about}
