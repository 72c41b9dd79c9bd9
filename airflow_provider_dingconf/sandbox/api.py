"""DingTalk's side of the calls: who may call, what a call does, and its response.

Each call is a row of :data:`ROUTES` with a function from the state and the call to the body of a success; it
raises :class:`RefusalError` for an error. If DingTalk's documentation does not name the error of an input, the
nearest documented one is sent.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_dingconf.sandbox import other_calls
from airflow_provider_dingconf.sandbox.faults import UNKNOWN_PATH, Response, error, permission_denied
from airflow_provider_dingconf.sandbox.meetings import FIELDS, facts, member, pick
from airflow_provider_dingconf.sandbox.state import APPS, CORP_ID, App, Call, Conference, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CREDENTIAL_HEADER: Final = "x-acs-dingtalk-access-token"
CONNECT_PATH: Final = "/connect"
SWITCHING: Final = 101
"""The HTTP status of a call that goes on as a WebSocket."""

_CHINA: Final = timezone(timedelta(hours=8))
_PAGE: Final = 20
_PAGE_OF_MEMBERS: Final = 128
_LONGEST_TITLE: Final = 256
_SHOWN_TITLE: Final = 50


class RefusalError(Exception):
    """Raised for a call that gets an error response."""

    def __init__(
        self, response: Response | str, status: int | None = None, message: str | None = None
    ) -> None:
        super().__init__(response)
        self.response = error(response, status, message) if isinstance(response, str) else response


@dataclass(frozen=True)
class Route:
    """One call of DingTalk's API.

    :param name: its name in faults and records.
    :param path: with parameters in braces.
    :param respond: returns the body of a success, or a whole response.
    :param scope: the permission point it needs, ``Read`` or ``Write``; None: no access token either.
    :param counts: whether limits apply to it.
    """

    name: str
    method: str
    path: str
    respond: Callable[[State, Call], Any]
    scope: str | None = None
    counts: bool = True


def admit(state: State, route: Route, call: Call) -> None:
    """Check the limits and the access token of a call.

    :raises RefusalError: a limit is exceeded, the access token is not valid, or the app lacks a permission.
    """
    if not route.counts:
        return
    if not state.within_quota():
        raise RefusalError("Forbidden.AccessDenied.ApiCountLimitForOrg", 403)
    seconds = state.seconds_to_wait(_client_id(state, route, call), f"{route.method} {route.path}")
    if seconds:
        # DingTalk names whole seconds: the limit is over when the one it names has come.
        end = datetime.fromtimestamp(math.ceil(time.time() + seconds), _CHINA)
        message = f"接口调用超过频率限制，限制将在 {end:%Y-%m-%d %H:%M:%S} 结束"
        raise RefusalError("Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", 403, message)


def _client_id(state: State, route: Route, call: Call) -> str:
    """Return the Client ID of the app that calls, whose access token must be valid if the call needs one."""
    if route.scope is None:
        try:
            body = call.json()
            return next(
                str(body[key]) for key in ("appKey", "suiteKey", "client_id", "clientId") if key in body
            )
        except (ValueError, TypeError, StopIteration):
            return ""
    token = call.header(CREDENTIAL_HEADER)
    if not token:
        message = f"{CREDENTIAL_HEADER} is mandatory for this action."
        raise RefusalError("AuthenticationFailed.MissingParameter", 400, message)
    app = state.token_app(token)
    if app is None:
        raise RefusalError("InvalidAuthentication", 400)
    if not app.permitted:
        raise RefusalError(permission_denied(route.scope))
    return app.client_id


# Access tokens


def _internal_token(state: State, call: Call) -> Any:
    sent = _texts(call, "appKey", "appSecret")
    app = _app(sent["appKey"], sent["appSecret"])
    if app is None or app.third_party:
        raise RefusalError("invalidClientIdOrSecret", 400)
    return _token(state, app, "accessToken", "expireIn")


def _corp_token(state: State, call: Call) -> Any:
    sent = _texts(call, "suiteKey", "suiteSecret", "authCorpId", "suiteTicket")
    app = _app(sent["suiteKey"], sent["suiteSecret"])
    if app is None or not app.third_party:
        raise RefusalError("invalidSuiteKey", 400)
    if sent["suiteTicket"] != state.valid_suite_ticket:
        raise RefusalError("invalidSuiteTicket", 400)
    if sent["authCorpId"] != CORP_ID:
        raise RefusalError("invalidAuthInfo", 400)
    return _token(state, app, "accessToken", "expireIn")


def _unified_token(state: State, call: Call) -> Any:
    sent = _texts(call, "client_id", "client_secret", "grant_type")
    if sent["grant_type"] != "client_credentials":
        raise RefusalError("unsupported.grant.type", 400)
    right_corp = call.parameters["corpId"] == CORP_ID
    if not right_corp and sent["client_id"] not in APPS:
        raise RefusalError("unknownError", 500)
    app = _app(sent["client_id"], sent["client_secret"])
    if app is None:
        raise RefusalError("invalid.client", 400)
    if not right_corp:
        raise RefusalError("unauthorized.client", 401)
    return _token(state, app, "access_token", "expires_in")


def _app(client_id: str, client_secret: str) -> App | None:
    app = APPS.get(client_id)
    return app if app and app.client_secret == client_secret else None


def _token(state: State, app: App, token_key: str, lifetime_key: str) -> Any:
    return {token_key: state.issue_token(app), lifetime_key: math.ceil(state.token_lifetime)}


# Meetings


def _create(state: State, call: Call) -> Any:
    sent = _object(call, "paramsError")
    title, creator, invited = sent.get("confTitle"), sent.get("userId"), sent.get("inviteUserIds") or []
    if not isinstance(title, str) or not 0 < len(title.strip()) <= _LONGEST_TITLE:
        raise RefusalError("paramsTitleError", 400)
    if not creator or not _are_texts([creator]) or not _are_texts(invited):
        raise RefusalError("paramsError", 400)
    created = state.create_conference(title[:_SHOWN_TITLE], creator_id=creator, invited=invited)
    return pick(facts(state.conference(created)), FIELDS["create"])


def _close(state: State, call: Call) -> Any:
    conference = _conference(state, call, "paramsError", 400)
    if conference.status == "ended":
        raise RefusalError("resourceClose", 400)
    if call.parameters.get("unionId") != conference.creator_id:
        raise RefusalError("noPermission" if call.parameters.get("unionId") else "paramsError", 400)
    state.close(conference.conference_id)
    return {"code": 200, "cause": ""}


def _lock(state: State, call: Call) -> Any:
    action = _object(call, "paramsError").get("action")
    if action not in ("lock", "unlock"):
        raise RefusalError("paramsError", 400)
    conference = _conference(state, call, "paramsError", 400)
    if conference.status != "started":
        raise RefusalError("confClosed" if conference.status == "ended" else "commandError", 400)
    conference.locked = action == "lock"
    return {"success": True}


def _info(state: State, call: Call) -> Any:
    return {"confInfo": pick(facts(_conference(state, call, "roomNotFound", 404)), FIELDS["info"])}


def _query(state: State, call: Call) -> Any:
    wanted = _object(call, "paramsError").get("conferenceIdList")
    if not wanted or not _are_texts(wanted):
        raise RefusalError("paramsError", 400)
    running = [one for one in map(state.find, wanted) if one and one.status == "started"]
    return {"infos": [pick(facts(one), FIELDS["query"]) for one in running]}


def _members(state: State, call: Call) -> Any:
    conference = _conference(state, call, "roomNotFound", 404)
    members = [member(conference, user) for user in conference.participants]
    return _page(call, "memberModels", members, _PAGE_OF_MEMBERS)


def _list(state: State, call: Call) -> Any:
    running = [one for one in state.conferences.values() if one.status == "started"]
    return _page(
        call, "onGoingConfList", [pick(facts(one), FIELDS["list"]) for one in running], has_more=True
    )


def _room_code(state: State, call: Call) -> Any:
    code = call.parameters["roomCode"]
    if not code.isdecimal():
        raise RefusalError("invalidRoomCode", 400)
    found = [one for one in state.conferences.values() if one.room_code == code]
    return _page(
        call, "conferenceList", [pick(facts(one), FIELDS["roomCode"]) for one in found], has_more=True
    )


def _schedule(state: State, call: Call) -> Any:
    wanted = call.parameters["scheduleConferenceId"]
    held = [
        one for one in state.conferences.values() if one.schedule_conference_id == wanted and one.start_time
    ]
    held.sort(key=lambda one: one.start_time or 0)
    return _page(call, "conferenceList", [pick(facts(one), FIELDS["schedule"]) for one in held])


def _page(call: Call, key: str, items: list[Any], most: int = _PAGE, has_more: bool = False) -> Any:
    first = _number(call, "nextToken", 0)
    last = first + (_number(call, "maxResults", most) or most)
    more = last < len(items)
    body = {key: items[first:last], "totalCount": len(items)}
    if has_more:
        return body | {"hasMore": more} | ({"nextToken": str(last)} if more else {})
    # DingTalk sends no hasMore here: the list ends with an empty nextToken.
    return body | {"nextToken": str(last) if more else ""}


# Event streams, and unknown paths


def _stream(state: State, call: Call) -> Any:
    sent = _texts(call, "clientId", "clientSecret")
    app = _app(sent["clientId"], sent["clientSecret"])
    if app is None:
        raise RefusalError("authFailed", 401)
    if not sent.get("subscriptions") or not isinstance(sent["subscriptions"], list):
        raise RefusalError("Missingsubscriptions", 400, "subscriptions is mandatory for this action.")
    return {"endpoint": state.stream_endpoint, "ticket": state.issue_stream_ticket(app)}


def _connect(state: State, call: Call) -> Any:
    """Let an app connect to its event stream; the response's body is its Client ID, for the server."""
    app = state.take_stream_ticket(call.parameters.get("ticket", ""))
    if app is None:
        raise RefusalError("authFailed", 401, "The ticket is not valid.")
    return Response(SWITCHING, app.client_id)


def _unknown(_state: State, call: Call) -> Any:
    if not re.match(r"/v\d+\.\d+/", call.path):
        raise RefusalError(UNKNOWN_PATH)
    message = "Specified api is not found, please check your url and method."
    raise RefusalError("InvalidAction.NotFound", 404, message)


# What a call sent


def _conference(state: State, call: Call, code: str, status: int) -> Conference:
    conference = state.find(call.conference_id or "")
    if conference is None:
        raise RefusalError(code, status)
    return conference


def _object(call: Call, code: str) -> dict[str, Any]:
    """Return the JSON object that is the body of a call."""
    try:
        body = call.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "json" not in (call.header("Content-Type") or ""):
        raise RefusalError(code, 400)
    return body


def _texts(call: Call, *names: str) -> dict[str, Any]:
    """Return the body of a call, in which these fields must be texts."""
    body = _object(call, "invalidParameter")
    for name in names:
        if not body.get(name) or not isinstance(body[name], str):
            raise RefusalError(f"Missing{name}", 400, f"{name} is mandatory for this action.")
    return body


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number(call: Call, name: str, default: int) -> int:
    text = call.parameters.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise RefusalError("paramError", 400)
    return int(text)


_ROOT: Final = "/v1.0/conference"
_MEETINGS: Final = _ROOT + "/videoConferences"
_MEETING: Final = _MEETINGS + "/{conferenceId}"


def _routes() -> Iterable[Route]:
    yield Route("lock", "POST", _MEETING + "/lock", _lock, "Write")
    yield Route("token", "POST", "/v1.0/oauth2/accessToken", _internal_token)
    yield Route("token", "POST", "/v1.0/oauth2/corpAccessToken", _corp_token)
    yield Route("token", "POST", "/v1.0/oauth2/{corpId}/token", _unified_token)
    yield Route("create", "POST", _MEETINGS, _create, "Write")
    yield Route("query", "POST", _MEETINGS + "/query", _query, "Read")
    yield Route(
        "schedule", "GET", _MEETINGS + "/scheduleConferences/{scheduleConferenceId}", _schedule, "Read"
    )
    yield Route("info", "GET", _MEETING, _info, "Read")
    yield Route("close", "DELETE", _MEETING, _close, "Write")
    yield Route("members", "GET", _MEETING + "/members", _members, "Read")
    yield Route("list", "GET", _ROOT + "/orgConferences", _list, "Read")
    yield Route("roomCode", "GET", _ROOT + "/roomCodes/{roomCode}/infos", _room_code, "Read")
    for method, path, sample in other_calls.rows():
        scope = "Read" if method == "GET" else "Write"
        # A call without a documented body gets an empty one.
        yield Route(
            "other", method, path, lambda _state, _call, body=sample: Response(200, body or ""), scope
        )
    yield Route("stream", "POST", "/v1.0/gateway/connections/open", _stream)
    yield Route("connect", "GET", CONNECT_PATH, _connect, counts=False)
    # Last: whatever no other row matches.
    yield Route("unknown", "*", "/{path:.*}", _unknown, counts=False)


ROUTES: Final = tuple(_routes())
"""The calls the sandbox knows, in the order in which they are tried."""


def respond(state: State, route: Route, call: Call) -> Response:
    """Return the response to an admitted call."""
    result = route.respond(state, call)
    return result if isinstance(result, Response) else Response(200, result)


def call_name(route: Route, body: bytes) -> str:
    """Return the name of a call: that of its route, or ``unlock`` if the lock call unlocks."""
    unlocks = route.name == "lock" and re.search(rb'"action"\s*:\s*"unlock"', body)
    return "unlock" if unlocks else route.name


def rehearsed_id(call: Call) -> str:
    """Return the reserved id, if any, that decides the result of a call; a new meeting's is its creator's."""
    if call.name != "create":
        return call.conference_id or ""
    return str(_object(call, "paramsError").get("userId"))
