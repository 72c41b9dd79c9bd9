"""The table of the DingTalk calls that this package makes: one row for each, on one line.

``page`` is the name of the call's page in `DingTalk's documentation
<https://help.dingtalk.io/open/development/api-lockconference>`__; calls.documentation_url makes its address.
"""

from __future__ import annotations

from typing import NamedTuple


class Endpoint(NamedTuple):
    """What DingTalk documents about a call."""

    kind: str  # what a metric calls it
    name: str  # what a log calls it, with {} for an id or a number
    method: str
    path: str  # percent-encoded, with {} for an id
    page: str | None  # the name of its page in DingTalk's documentation
    items: tuple[str, ...] = ()  # possible names of the list in the response
    confirms: bool = False  # whether a successful response must say "success": true
    repeatable: bool = True  # whether sending the call twice has the same effect as sending it once
    with_credentials: bool = False  # whether it sends the app's credentials in place of an access token
    any_body: bool = False  # whether a successful response may have no body, or any JSON


# fmt: off
_MEETINGS = "/v1.0/conference/videoConferences"
_LISTED = ("onGoingConfList", "conferenceList")

LOCK = Endpoint("lock", "lock {}", "POST", f"{_MEETINGS}/{{}}/lock", "api-lockconference", confirms=True)
UNLOCK = LOCK._replace(kind="unlock", name="unlock {}")
GET_CONFERENCE = Endpoint("get_conference", "query {}", "GET", f"{_MEETINGS}/{{}}", "querying-video-conference-information")
QUERY_CONFERENCES = Endpoint("query_conferences", "query {} meetings", "POST", f"{_MEETINGS}/query", "batch-query-of-video-conference-information", ("infos",))
RUNNING_CONFERENCES = Endpoint("running_conferences", "running meetings", "GET", "/v1.0/conference/orgConferences", "api-queryorgconferencelist", _LISTED)
FIND_BY_ROOM_CODE = Endpoint("find_by_room_code", "meetings of room code {}", "GET", "/v1.0/conference/roomCodes/{}/infos", "api-queryconferenceinfobyroomcode", _LISTED)
FIND_BY_SCHEDULE = Endpoint("find_by_schedule_conference_id", "meetings of schedule {}", "GET", f"{_MEETINGS}/scheduleConferences/{{}}", "query-appointment-meeting-history-meeting-information", _LISTED)
LIST_MEMBERS = Endpoint("conference_members", "members of {}", "GET", f"{_MEETINGS}/{{}}/members", "querying-video-conference-members", ("memberModels",))
CREATE = Endpoint("create_conference", "create a meeting", "POST", _MEETINGS, "create-a-video-conference", repeatable=False)
CLOSE = Endpoint("close_conference", "close {}", "DELETE", f"{_MEETINGS}/{{}}", "close-audio-video-conference")
ACCESS_TOKEN = Endpoint("access_token", "access token", "POST", "/v1.0/oauth2/{}", "obtain-the-access-token-of-an-internal-app", with_credentials=True)
EVENT_STREAM = Endpoint("open_stream", "event stream", "POST", "/v1.0/gateway/connections/open", "introduction-to-stream-mode", with_credentials=True)
# fmt: on
