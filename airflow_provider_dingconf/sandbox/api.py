"""DingTalk's side of the calls: who may call, what a call does, what it answers.

Each call is a row of :data:`ROUTES` and a function from the state and the call to the answer. A function
raises :class:`RefusalError` for an error. Where the documentation of a call does not say which error an input
gets, the nearest documented one is sent.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_dingconf.sandbox.faults import Answer, error
from airflow_provider_dingconf.sandbox.state import APPS, CORP_ID, App, Call, Conference, State

if TYPE_CHECKING:
    from collections.abc import Callable

CREDENTIAL_HEADER: Final = "x-acs-dingtalk-access-token"
_STATUS_NUMBERS: Final = {"not_started": 0, "ended": 1, "started": 2}
_PAGE: Final = 20
_INSTANT: Final = "0"
_SCHEDULED: Final = "3"

CONNECT_PATH: Final = "/connect"
SWITCHING: Final = 101
"""The HTTP status of a call that goes on as a WebSocket."""


class RefusalError(Exception):
    """Raised when a call gets an error answer, which is its argument."""

    def __init__(self, code: str, status: int | None = None, message: str | None = None) -> None:
        super().__init__(code)
        self.answer = error(code, status, message)


@dataclass(frozen=True)
class Route:
    """One call of DingTalk's API.

    :param name: what faults and records call it.
    :param path: the path, with parameters in braces.
    :param open: whether it goes without an access token.
    """

    name: str
    method: str
    path: str
    answer: Callable[[State, Call], Answer]
    open: bool = False


def admit(state: State, route: Route, call: Call) -> None:
    """Check the access token of a call.

    :raises RefusalError: when it is missing, unknown, expired or revoked, or the app lacks the permission.
    """
    if route.open:
        return
    token = call.header(CREDENTIAL_HEADER)
    if not token:
        raise RefusalError("InvalidAuthentication", 401, f"{CREDENTIAL_HEADER} is missing.")
    app = state.token_app(token)
    if app is None:
        raise RefusalError("InvalidAuthentication", 400)
    if not app.permitted:
        raise RefusalError("Forbidden.AccessDenied.AccessTokenPermissionDenied")


# Access tokens


def _internal_token(state: State, call: Call) -> Answer:
    sent = _fields(call, "appKey", "appSecret")
    app = _app(sent["appKey"], sent["appSecret"])
    if app is None or app.third_party:
        raise RefusalError("invalidClientIdOrSecret")
    return _token(state, app, "accessToken", "expireIn")


def _corp_token(state: State, call: Call) -> Answer:
    sent = _fields(call, "suiteKey", "suiteSecret", "authCorpId", "suiteTicket")
    app = _app(sent["suiteKey"], sent["suiteSecret"])
    if app is None or not app.third_party:
        raise RefusalError("invalidSuiteKey")
    if sent["suiteTicket"] != state.suite_ticket:
        raise RefusalError("invalidSuiteTicket")
    if sent["authCorpId"] != CORP_ID:
        raise RefusalError("invalidAuthInfo")
    return _token(state, app, "accessToken", "expireIn")


def _unified_token(state: State, call: Call) -> Answer:
    sent = _fields(call, "client_id", "client_secret", "grant_type")
    if sent["grant_type"] != "client_credentials":
        raise RefusalError("unsupported.grant.type")
    app = _app(sent["client_id"], sent["client_secret"])
    if app is None:
        raise RefusalError("invalid.client")
    if call.parameters["corpId"] != CORP_ID:
        raise RefusalError("unauthorized.client")
    return _token(state, app, "access_token", "expires_in")


def _fields(call: Call, *names: str) -> dict[str, str]:
    body = _object(call, "invalidParameter")
    for name in names:
        if not body.get(name) or not isinstance(body[name], str):
            raise RefusalError(f"Missing{name}", 400, f"{name} is mandatory for this action.")
    return body


def _app(client_id: str, client_secret: str) -> App | None:
    app = APPS.get(client_id)
    return app if app and app.client_secret == client_secret else None


def _token(state: State, app: App, token_key: str, lifetime_key: str) -> Answer:
    return Answer(body={token_key: state.issue_token(app), lifetime_key: math.ceil(state.token_lifetime)})


# Conferences


def _lock(state: State, call: Call) -> Answer:
    action = _object(call, "paramsError").get("action")
    if action not in ("lock", "unlock"):
        raise RefusalError("paramsError")
    conference = _conference(state, call, "paramsError", 400)
    if conference.status == "ended":
        raise RefusalError("confClosed")
    if conference.status == "not_started":
        raise RefusalError("commandError")
    conference.locked = action == "lock"
    return Answer(body={"success": True})


def _info(state: State, call: Call) -> Answer:
    conference = _conference(state, call, "roomNotFound", 404)
    info = details(conference) | {
        "activeNum": len(conference.participants) if conference.status == "started" else 0,
        "attendNum": len(conference.participants),
        "invitedNum": 0,
        "cloudRecordStatus": 0,
    }
    return Answer(body={"confInfo": info})


def _query(state: State, call: Call) -> Answer:
    wanted = _object(call, "paramsError").get("conferenceIdList")
    if not wanted or not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
        raise RefusalError("paramsError")
    infos = [
        {
            "conferenceId": conference.conference_id,
            "title": conference.title,
            "status": _STATUS_NUMBERS[conference.status],
            "startTime": conference.start_time,
            "mediaStatus": 0,
            "userList": [
                {"userId": user, "nick": user, "attendStatus": 1} for user in conference.participants
            ],
        }
        for conference in map(state.find, wanted)
        if conference and conference.status == "started"
    ]
    return Answer(body={"infos": infos})


def _list(state: State, call: Call) -> Answer:
    running = [one for one in state.conferences.values() if one.status == "started"]
    return _paged(call, "onGoingConfList", running, _summary)


def _room_code(state: State, call: Call) -> Answer:
    code = call.parameters["roomCode"]
    if not code.isdecimal():
        raise RefusalError("invalidRoomCode")
    found = [one for one in state.conferences.values() if one.room_code == code]
    return _paged(call, "conferenceList", found, details)


def _schedule(state: State, call: Call) -> Answer:
    wanted = call.parameters["scheduleConferenceId"]
    held = [
        one
        for one in state.conferences.values()
        if one.schedule_conference_id == wanted and one.status != "not_started"
    ]
    last = sorted(held, key=lambda one: one.start_time or 0)[-1:]
    return _paged(call, "conferenceList", last, _of_schedule)


def _paged(
    call: Call, key: str, conferences: list[Conference], show: Callable[[Conference], dict[str, Any]]
) -> Answer:
    first = _number(call.parameters.get("nextToken") or "0")
    last = first + (_number(call.parameters.get("maxResults") or str(_PAGE)) or _PAGE)
    more = last < len(conferences)
    body = {key: list(map(show, conferences[first:last])), "hasMore": more, "totalCount": len(conferences)}
    return Answer(body=body | ({"nextToken": str(last)} if more else {}))


# Event streams


def _stream(state: State, call: Call) -> Answer:
    sent = _fields(call, "clientId", "clientSecret")
    app = _app(sent["clientId"], sent["clientSecret"])
    if app is None:
        raise RefusalError("authFailed")
    if not sent.get("subscriptions") or not isinstance(sent["subscriptions"], list):
        raise RefusalError("Missingsubscriptions", 400, "subscriptions is mandatory for this action.")
    return Answer(body={"endpoint": state.stream_endpoint, "ticket": state.issue_stream_ticket(app)})


def _connect(state: State, call: Call) -> Answer:
    """Let an app connect to its event stream; the answer's body is its id, for the server."""
    app = state.take_stream_ticket(call.parameters.get("ticket", ""))
    if app is None:
        raise RefusalError("authFailed", 401, "The ticket is not valid.")
    return Answer(SWITCHING, app.client_id)


def _unknown(_state: State, _call: Call) -> Answer:
    message = "Specified api is not found, please check your url and method."
    raise RefusalError("InvalidAction.NotFound", 404, message)


def _conference(state: State, call: Call, code: str, status: int) -> Conference:
    conference = state.find(call.conference_id or "")
    if conference is None:
        raise RefusalError(code, status)
    return conference


def _summary(conference: Conference) -> dict[str, Any]:
    return {
        "conferenceId": conference.conference_id,
        "title": conference.title,
        "roomCode": conference.room_code,
        "status": _STATUS_NUMBERS[conference.status],
        "startTime": conference.start_time,
        "creatorId": conference.creator_id,
        "creatorNick": conference.creator_id.capitalize(),
        "bizType": _SCHEDULED if conference.schedule_conference_id else _INSTANT,
    }


def details(conference: Conference) -> dict[str, Any]:
    """Return what DingTalk tells of one meeting."""
    told = _summary(conference) | {
        "externalLinkUrl": f"https://meeting.dingtalk.invalid/j/{conference.room_code}"
    }
    if conference.schedule_conference_id:
        told["scheduleConferenceId"] = conference.schedule_conference_id
    if conference.start_time and conference.end_time:
        duration = conference.end_time - conference.start_time
        told |= {"endTime": conference.end_time, "confDuration": duration}
    return told


def _of_schedule(conference: Conference) -> dict[str, Any]:
    told = details(conference)
    names = ("conferenceId", "title", "roomCode", "status", "startTime", "endTime")
    return {name: told[name] for name in names if name in told}


def _object(call: Call, code: str) -> dict[str, Any]:
    """Return the JSON object that is the body of a call."""
    try:
        body = call.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "json" not in (call.header("Content-Type") or ""):
        raise RefusalError(code, 400)
    return body


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise RefusalError("paramError", 400)
    return int(text)


_CONFERENCES: Final = "/v1.0/conference/videoConferences"

ROUTES: Final = (
    Route("token", "POST", "/v1.0/oauth2/accessToken", _internal_token, open=True),
    Route("token", "POST", "/v1.0/oauth2/corpAccessToken", _corp_token, open=True),
    Route("token", "POST", "/v1.0/oauth2/{corpId}/token", _unified_token, open=True),
    Route("lock", "POST", _CONFERENCES + "/{conferenceId}/lock", _lock),
    Route("info", "GET", _CONFERENCES + "/{conferenceId}", _info),
    Route("query", "POST", _CONFERENCES + "/query", _query),
    Route("schedule", "GET", _CONFERENCES + "/scheduleConferences/{scheduleConferenceId}", _schedule),
    Route("list", "GET", "/v1.0/conference/orgConferences", _list),
    Route("roomCode", "GET", "/v1.0/conference/roomCodes/{roomCode}/infos", _room_code),
    Route("stream", "POST", "/v1.0/gateway/connections/open", _stream, open=True),
    Route("connect", "GET", CONNECT_PATH, _connect, open=True),
    # Last: whatever no other row takes.
    Route("unknown", "*", "/{path:.*}", _unknown, open=True),
)
"""The calls the sandbox knows, in the order in which they are tried."""


def call_name(route: Route, body: bytes) -> str:
    """Return the name of a call: that of its route, but ``unlock`` where the lock call unlocks."""
    unlocks = route.name == "lock" and re.search(rb'"action"\s*:\s*"unlock"', body)
    return "unlock" if unlocks else route.name
