"""DingTalk's side of the calls: who may call, what a call does, and its response.

Each call is a row of :data:`ROUTES` with a function from the state and the call to the body of a success; it
raises :class:`RefusalError` for an error. If DingTalk's documentation does not name the error of an input,
the nearest documented one is sent.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_dingconf.sandbox import other_calls
from airflow_provider_dingconf.sandbox.faults import UNKNOWN_PATH, Response, error, permission_denied
from airflow_provider_dingconf.sandbox.meetings import describe, member
from airflow_provider_dingconf.sandbox.state import APPS, CORP_ID, App, Call, Conference, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CREDENTIAL_HEADER: Final = "x-acs-dingtalk-access-token"
CONNECT_PATH: Final = "/connect"
SWITCHING: Final = 101  # the HTTP status of a call that goes on as a WebSocket
_CHINA: Final = timezone(timedelta(hours=8))
_PAGE, _PAGE_OF_MEMBERS = 20, 128
_LONGEST_TITLE, _SHOWN_TITLE = 256, 50


class RefusalError(Exception):
    """Raised for a call that gets an error response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


def _require(condition: object, code: str, status: int = 400, message: str | None = None) -> None:
    if not condition:
        raise RefusalError(error(code, status, message))


@dataclass(frozen=True)
class Route:
    """One call of DingTalk's API."""

    name: str  # in faults and records
    method: str
    path: str
    respond: Callable[[State, Call], Any]  # returns the body of a success, or a whole response
    scope: str | None = None  # the permission point it needs, Read or Write; None: no access token either
    counts: bool = True  # whether limits apply to it


def admit(state: State, route: Route, call: Call) -> None:
    """Check the limits and the access token of a call.

    :raises RefusalError: a limit is exceeded, the access token is not valid, or the app lacks a permission.
    """
    if not route.counts:
        return
    _require(state.within_quota(), "Forbidden.AccessDenied.ApiCountLimitForOrg", 403)
    seconds = state.seconds_to_wait(_client_id(state, route, call), f"{route.method} {route.path}")
    if seconds:
        # DingTalk names whole seconds: the limit is over when the one it names has come.
        end = datetime.fromtimestamp(math.ceil(time.time() + seconds), _CHINA)
        message = f"接口调用超过频率限制，限制将在 {end:%Y-%m-%d %H:%M:%S} 结束"
        raise RefusalError(error("Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", 403, message))


def _client_id(state: State, route: Route, call: Call) -> str:
    """Return the Client ID of the app that calls, whose access token must be valid if the call needs one."""
    if route.scope is None:
        body = _object(call, "invalidParameter")
        return str([body[key] for key in ("appKey", "suiteKey", "client_id", "clientId") if key in body])
    token = call.header(CREDENTIAL_HEADER)
    message = f"{CREDENTIAL_HEADER} is mandatory for this action."
    _require(token, "AuthenticationFailed.MissingParameter", 400, message)
    app = state.token_app(token or "")
    if app is None:
        raise RefusalError(error("InvalidAuthentication", 400))
    if not app.permitted:
        raise RefusalError(permission_denied(route.scope))
    return app.client_id


# Access tokens


def _internal_token(state: State, call: Call) -> Any:
    key, secret = _texts(call, "appKey", "appSecret")
    app = _app(key, secret, "invalidClientIdOrSecret")
    _require(not app.third_party, "invalidClientIdOrSecret")
    return _token(state, app, "accessToken", "expireIn")


def _corp_token(state: State, call: Call) -> Any:
    key, secret, corp_id, ticket = _texts(call, "suiteKey", "suiteSecret", "authCorpId", "suiteTicket")
    app = _app(key, secret, "invalidSuiteKey")
    _require(app.third_party, "invalidSuiteKey")
    _require(ticket == state.valid_suite_ticket, "invalidSuiteTicket")
    _require(corp_id == CORP_ID, "invalidAuthInfo")
    return _token(state, app, "accessToken", "expireIn")


def _unified_token(state: State, call: Call) -> Any:
    client_id, secret, grant_type = _texts(call, "client_id", "client_secret", "grant_type")
    right_corp = call.parameters["corpId"] == CORP_ID
    _require(grant_type == "client_credentials", "unsupported.grant.type")
    _require(right_corp or client_id in APPS, "unknownError", 500)
    app = _app(client_id, secret, "invalid.client")
    _require(right_corp, "unauthorized.client", 401)
    return _token(state, app, "access_token", "expires_in")


def _app(client_id: str, client_secret: str, code: str, status: int = 400) -> App:
    app = APPS.get(client_id)
    if app is None or app.client_secret != client_secret:
        raise RefusalError(error(code, status))
    return app


def _token(state: State, app: App, token_key: str, lifetime_key: str) -> Any:
    return {token_key: state.issue_token(app), lifetime_key: math.ceil(state.token_lifetime)}


# Meetings


def _create(state: State, call: Call) -> Any:
    sent = _object(call, "paramsError")
    title, creator, invited = sent.get("confTitle"), sent.get("userId"), sent.get("inviteUserIds") or []
    _require(isinstance(title, str) and 0 < len(title.strip()) <= _LONGEST_TITLE, "paramsTitleError")
    _require(creator and _are_texts([creator]) and _are_texts(invited), "paramsError")
    made = state.create_conference(str(title)[:_SHOWN_TITLE], creator_id=str(creator), invited=invited)
    return describe(state.conference(made), "create")


def _close(state: State, call: Call) -> Any:
    conference = _conference(state, call, "paramsError")
    _require(conference.status != "ended", "resourceClose")
    _require(call.parameters.get("unionId"), "paramsError")
    _require(call.parameters["unionId"] == conference.creator_id, "noPermission")
    state.close(conference.conference_id)
    return {"code": 200, "cause": ""}


def _lock(state: State, call: Call) -> Any:
    action = _object(call, "paramsError").get("action")
    _require(action in ("lock", "unlock"), "paramsError")
    conference = _conference(state, call, "paramsError")
    _require(conference.status != "ended", "confClosed")
    _require(conference.status == "started", "commandError")
    conference.locked = action == "lock"
    return {"success": True}


def _info(state: State, call: Call) -> Any:
    return {"confInfo": describe(_conference(state, call, "roomNotFound", 404), "info")}


def _query(state: State, call: Call) -> Any:
    wanted = _object(call, "paramsError").get("conferenceIdList")
    _require(wanted and _are_texts(wanted), "paramsError")
    found = map(state.find, wanted or [])
    return {"infos": [describe(one, "query") for one in found if one and one.status == "started"]}


def _members(state: State, call: Call) -> Any:
    conference = _conference(state, call, "roomNotFound", 404)
    members = [member(conference, user) for user in conference.participants]
    return _page(call, "memberModels", members, _PAGE_OF_MEMBERS)


def _list(state: State, call: Call) -> Any:
    running = [describe(one, "list") for one in state.conferences.values() if one.status == "started"]
    return _page(call, "onGoingConfList", running, has_more=True)


def _room_code(state: State, call: Call) -> Any:
    code = call.parameters["roomCode"]
    _require(code.isdecimal(), "invalidRoomCode")
    found = [describe(one, "roomCode") for one in state.conferences.values() if one.room_code == code]
    return _page(call, "conferenceList", found, has_more=True)


def _schedule(state: State, call: Call) -> Any:
    wanted = call.parameters["scheduleConferenceId"]
    found = (one for one in state.conferences.values() if one.schedule_conference_id == wanted)
    held = [describe(one, "schedule") for one in found if one.start_time]
    return _page(call, "conferenceList", sorted(held, key=lambda one: one["startTime"]))


def _page(call: Call, key: str, items: list[Any], most: int = _PAGE, has_more: bool = False) -> Any:
    first = _number(call, "nextToken", 0)
    last = first + (_number(call, "maxResults", most) or most)
    more = last < len(items)
    body = {key: items[first:last], "totalCount": len(items)}
    if has_more:
        return body | {"hasMore": more} | ({"nextToken": str(last)} if more else {})
    # Here DingTalk sends no hasMore: an empty nextToken ends the list.
    return body | {"nextToken": str(last) if more else ""}


# Event streams, and unknown paths


def _stream(state: State, call: Call) -> Any:
    client_id, secret = _texts(call, "clientId", "clientSecret")
    app = _app(client_id, secret, "authFailed", 401)
    wanted = call.json().get("subscriptions")
    message = "subscriptions is mandatory for this action."
    _require(wanted and isinstance(wanted, list), "Missingsubscriptions", 400, message)
    return {"endpoint": state.stream_endpoint, "ticket": state.issue_stream_ticket(app)}


def _connect(state: State, call: Call) -> Any:
    """Let an app connect to its event stream; the response's body is its Client ID, for the server."""
    app = state.take_stream_ticket(call.parameters.get("ticket", ""))
    _require(app, "authFailed", 401, "The ticket is not valid.")
    return Response(SWITCHING, app and app.client_id)


def _sample(body: dict[str, Any], _state: State, _call: Call) -> Any:
    return body or ""  # a call without a documented body gets an empty one


def _unknown(_state: State, call: Call) -> Any:
    if not re.match(r"/v\d+\.\d+/", call.path):
        return UNKNOWN_PATH
    return error(
        "InvalidAction.NotFound", 404, "Specified api is not found, please check your url and method."
    )


# What a call sent


def _conference(state: State, call: Call, code: str, status: int = 400) -> Conference:
    if conference := state.find(call.conference_id or ""):
        return conference
    raise RefusalError(error(code, status))


def _object(call: Call, code: str) -> dict[str, Any]:
    """Return the JSON object that is the body of a call."""
    try:
        body = call.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "json" not in (call.header("Content-Type") or ""):
        raise RefusalError(error(code, 400))
    return body


def _texts(call: Call, *names: str) -> list[str]:
    """Return these fields of the body of a call, which must be texts."""
    body = _object(call, "invalidParameter")
    for name in names:
        valid = body.get(name) and isinstance(body[name], str)
        _require(valid, f"Missing{name}", 400, f"{name} is mandatory for this action.")
    return [body[name] for name in names]


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number(call: Call, name: str, default: int) -> int:
    text = call.parameters.get(name) or str(default)
    _require(re.fullmatch(r"[0-9]{1,9}", text), "paramError")
    return int(text)


_ROOT: Final = "/v1.0/conference"
_MEETINGS: Final = _ROOT + "/videoConferences"
_MEETING: Final = _MEETINGS + "/{conferenceId}"
_SCHEDULE: Final = _MEETINGS + "/scheduleConferences/{scheduleConferenceId}"


def _routes() -> Iterator[Route]:
    yield Route("lock", "POST", _MEETING + "/lock", _lock, "Write")
    yield Route("token", "POST", "/v1.0/oauth2/accessToken", _internal_token)
    yield Route("token", "POST", "/v1.0/oauth2/corpAccessToken", _corp_token)
    yield Route("token", "POST", "/v1.0/oauth2/{corpId}/token", _unified_token)
    yield Route("create", "POST", _MEETINGS, _create, "Write")
    yield Route("query", "POST", _MEETINGS + "/query", _query, "Read")
    yield Route("schedule", "GET", _SCHEDULE, _schedule, "Read")
    yield Route("info", "GET", _MEETING, _info, "Read")
    yield Route("close", "DELETE", _MEETING, _close, "Write")
    yield Route("members", "GET", _MEETING + "/members", _members, "Read")
    yield Route("list", "GET", _ROOT + "/orgConferences", _list, "Read")
    yield Route("roomCode", "GET", _ROOT + "/roomCodes/{roomCode}/infos", _room_code, "Read")
    for method, path, sample in other_calls.rows():
        scope = "Read" if method == "GET" else "Write"
        yield Route("other", method, path, partial(_sample, sample), scope)
    yield Route("stream", "POST", "/v1.0/gateway/connections/open", _stream)
    yield Route("connect", "GET", CONNECT_PATH, _connect, counts=False)
    # Last: whatever no other row matches.
    yield Route("unknown", "*", "/{path:.*}", _unknown, counts=False)


ROUTES: Final = tuple(_routes())
"""The calls the sandbox knows, in the order in which they are tried."""


def call_name(route: Route, body: bytes) -> str:
    """Return the name of a call: that of its route, or ``unlock`` if the lock call unlocks."""
    unlocks = route.name == "lock" and re.search(rb'"action"\s*:\s*"unlock"', body)
    return "unlock" if unlocks else route.name


def rehearsed_id(call: Call) -> str:
    """Return the reserved id, if any, that decides the result of a call; a new meeting's is its creator's."""
    if call.name != "create":
        return call.conference_id or ""
    return str(_object(call, "paramsError").get("userId"))
