"""The calls on the server's side: who may make them, what they do, and their responses.

Each row of :data:`ROUTES` is one call. Its method returns the body of a success, or raises an error. If
DingTalk's documentation names no error for an input, it is the nearest documented one.
"""

import json
import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER
from airflow_provider_dingconf.sandbox.faults import RESERVED, RESPONSES, Call, Fault, Response, denied, error
from airflow_provider_dingconf.sandbox.meetings import Conference, Meetings
from airflow_provider_dingconf.sandbox.state import APPS, CORP_ID, App

SWITCHING: Final = 101  # the HTTP status of a call that becomes a WebSocket
_CHINA: Final = timezone(timedelta(hours=8))
_PAGE, _PAGE_OF_MEMBERS = 20, 128
_LONGEST_TITLE, _SHOWN_TITLE = 256, 50
T = TypeVar("T")


class Route(NamedTuple):
    """One call of DingTalk's API."""

    name: str  # in faults and records
    respond: Callable[[Any, Call], Any]  # returns the body of a success, or a whole response
    scope: str | None = None  # the permission that it needs, Read or Write; None: no access token either
    counts: bool = True  # whether limits apply to it


class RefusalError(Exception):
    """Raised for a call that gets an error response."""

    def __init__(self, response: Response) -> None:
        self.response = response


def _require(value: T | None, code: str, message: str | None = None) -> T:
    """Return a value; refuse the call if it is false."""
    if not value:
        raise RefusalError(error(code, message))
    return value


def _object(call: Call, code: str = "paramsError") -> dict[str, Any]:
    """Return the JSON object in the body of a call."""
    try:
        body = call.json() if "json" in (call.header("Content-Type") or "") else None
    except ValueError:
        body = None
    return body if isinstance(body, dict) else _require(None, code)


def _fields(call: Call, *names: str, kind: type = str) -> list[Any]:
    """Return fields of the body of a call, which must have a type and not be empty."""
    body = _object(call, "invalidParameter")
    for name in names:
        valid = body.get(name) and isinstance(body[name], kind)
        _require(valid, f"Missing{name}", f"{name} is mandatory for this action.")
    return [body[name] for name in names]


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _app(code: str, client_id: str, client_secret: str, third_party: bool | None = None) -> App:
    app = _require(APPS.get(client_id), code)
    _require(app.client_secret == client_secret and third_party in (None, app.third_party), code)
    return app


def _page(call: Call, key: str, items: list[Any], most: int = _PAGE, has_more: bool = False) -> Any:
    numbers = [call.parameters.get(name) or "0" for name in ("nextToken", "maxResults")]
    _require(all(re.fullmatch("[0-9]{1,9}", number) for number in numbers), "paramError")
    first, size = map(int, numbers)
    last = first + (size or most)
    page = {key: items[first:last], "totalCount": len(items)}
    if last < len(items):
        page["nextToken"] = str(last)
    # For some lists, DingTalk sends no hasMore: an empty nextToken ends them.
    return page | {"hasMore": last < len(items)} if has_more else {"nextToken": "", **page}


class Calls(Meetings):
    """The effect and the response of each call."""

    def _internal_token(self, call: Call) -> Any:
        app = _app("invalidClientIdOrSecret", *_fields(call, "appKey", "appSecret"), third_party=False)
        return {"accessToken": self.issue_token(app), "expireIn": math.ceil(self.token_lifetime)}

    def _corp_token(self, call: Call) -> Any:
        key, secret, corp_id, ticket = _fields(call, "suiteKey", "suiteSecret", "authCorpId", "suiteTicket")
        app = _app("invalidSuiteKey", key, secret, third_party=True)
        _require(ticket == self.suite_ticket, "invalidSuiteTicket")
        _require(corp_id == CORP_ID, "invalidAuthInfo")
        return {"accessToken": self.issue_token(app), "expireIn": math.ceil(self.token_lifetime)}

    def _unified_token(self, call: Call) -> Any:
        client_id, secret, grant_type = _fields(call, "client_id", "client_secret", "grant_type")
        right_corp = call.parameters["corpId"] == CORP_ID
        _require(grant_type == "client_credentials", "unsupported.grant.type")
        _require(right_corp or client_id in APPS, "unknownError")
        app = _app("invalid.client", client_id, secret)
        _require(right_corp, "unauthorized.client")
        return {"access_token": self.issue_token(app), "expires_in": math.ceil(self.token_lifetime)}

    def _meeting(self, call: Call, code: str) -> Conference:
        conference_id = str(call.conference_id)
        _require(conference_id in RESERVED or conference_id in self.conferences, code)
        return self.conference(conference_id)

    def _create(self, call: Call) -> Any:
        sent = _object(call)
        title, creator, invited = sent.get("confTitle"), sent.get("userId"), sent.get("inviteUserIds") or []
        _require(isinstance(title, str) and 0 < len(title.strip()) <= _LONGEST_TITLE, "paramsTitleError")
        _require(creator and _are_texts([creator]) and _are_texts(invited), "paramsError")
        made = self.create_conference(str(title)[:_SHOWN_TITLE], creator_id=str(creator), invited=invited)
        return self.conference(made).described("create")

    def _close(self, call: Call) -> Any:
        conference = self._meeting(call, "paramsError")
        _require(conference.status != "ended", "resourceClose")
        _require(call.parameters.get("unionId"), "paramsError")
        _require(call.parameters["unionId"] == conference.creator_id, "noPermission")
        self.end(conference.conference_id)
        if conference.conference_id in RESERVED:  # it is there again for the next call
            del self.conferences[conference.conference_id]
        return {"code": 200, "cause": ""}

    def _lock(self, call: Call) -> Any:
        action = _object(call).get("action")
        _require(action in ("lock", "unlock"), "paramsError")
        conference = self._meeting(call, "paramsError")
        _require(conference.status != "ended", "confClosed")
        _require(conference.status == "started", "commandError")
        conference.locked = action == "lock"
        return {"success": True}

    def _info(self, call: Call) -> Any:
        return {"confInfo": self._meeting(call, "roomNotFound").described("info")}

    def _query(self, call: Call) -> Any:
        wanted = _object(call).get("conferenceIdList") or []
        _require(wanted and _are_texts(wanted), "paramsError")
        found = [self.conference(one) for one in wanted if one in RESERVED or one in self.conferences]
        return {"infos": [one.described("query") for one in found if one.status == "started"]}

    def _members(self, call: Call) -> Any:
        conference = self._meeting(call, "roomNotFound")
        members = [conference.member(user) for user in conference.participants]
        return _page(call, "memberModels", members, _PAGE_OF_MEMBERS)

    def _list(self, call: Call) -> Any:
        running = [one.described("list") for one in self.conferences.values() if one.status == "started"]
        return _page(call, "onGoingConfList", running, has_more=True)

    def _room_code(self, call: Call) -> Any:
        code = call.parameters["roomCode"]
        _require(code.isdecimal(), "invalidRoomCode")
        found = [one.described("roomCode") for one in self.conferences.values() if one.room_code == code]
        return _page(call, "conferenceList", found, has_more=True)

    def _schedule(self, call: Call) -> Any:
        wanted = call.parameters["id"]
        found = (one for one in self.conferences.values() if one.schedule_conference_id == wanted)
        held = [one.described("schedule") for one in found if one.start_time]
        return _page(call, "conferenceList", sorted(held, key=lambda one: one["startTime"]))

    def _open(self, call: Call) -> Any:
        app = _app("authFailed", *_fields(call, "clientId", "clientSecret"))
        _fields(call, "subscriptions", kind=list)
        ticket = str(uuid.uuid4())
        self.tickets[ticket] = app, self.clock() + self.stream_ticket_lifetime
        return {"endpoint": f"{self.url.replace('http', 'ws', 1)}/connect", "ticket": ticket}

    def _connect(self, call: Call) -> Any:
        """Let an app connect to its event stream; the body of the response is the app, for the server."""
        app, expires = self.tickets.pop(call.parameters.get("ticket", ""), (None, 0.0))
        _require(expires > self.clock(), "authFailed", "The ticket is not valid.")
        return Response(SWITCHING, app)

    def _unknown(self, call: Call) -> Any:
        versioned = re.match(r"/v\d+\.\d+/", call.path)
        message = "Specified api is not found, please check your url and method."
        return error("InvalidAction.NotFound", message) if versioned else RESPONSES["404-errcode"]

    def admit(self, route: Route, call: Call) -> Fault | None:
        """Check a call's limits, access token and permission; return what its meeting rehearses."""
        if not route.counts:
            return None
        self._used += 1
        within_quota = self.quota is None or self._used <= self.quota
        _require(within_quota, "Forbidden.AccessDenied.ApiCountLimitForOrg")
        api_of_app = self._client_id(route, call), route
        if (limit := self.calls_per_second) is not None:
            moment = self.clock()
            recent = [before for before in self._recent.get(api_of_app, []) if before + 1 > moment]
            # DingTalk names whole seconds: the limit is over when the one it names has come.
            end = math.ceil(time.time() + min(recent, default=0) + 1 - moment)
            message = (
                f"接口调用超过频率限制，限制将在 {datetime.fromtimestamp(end, _CHINA):%Y-%m-%d %H:%M:%S} 结束"
            )
            _require(len(recent) < limit, "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", message)
            self._recent[api_of_app] = [*recent, moment]
        # A new meeting has no id: its creator's decides.
        creator = _object(call).get("userId") if call.name == "create" else None
        return self.reserved_fault(str(creator or call.conference_id))

    def _client_id(self, route: Route, call: Call) -> str:
        """Return the app's Client ID; its access token must be valid if the call needs one."""
        if route.scope is None:
            body = _object(call, "invalidParameter")
            return str([body[key] for key in ("appKey", "suiteKey", "client_id", "clientId") if key in body])
        message = f"{TOKEN_HEADER} is mandatory for this action."
        token = _require(call.header(TOKEN_HEADER), "AuthenticationFailed.MissingParameter", message)
        app = _require(self.token_app(token), "InvalidAuthentication")
        if not app.permitted:
            raise RefusalError(denied(route.scope))
        return app.client_id


def _samples() -> Iterator[tuple[str, Route]]:
    """Yield what the other conference calls of DingTalk's official SDK return; ``~`` is a meeting."""
    samples = json.loads(Path(__file__).with_name("samples.json").read_text())
    for rows, body in samples.items():
        for row in rows.split(", "):
            method, path = row.replace("~", "videoConferences/{conferenceId}").split()
            route = Route("other", lambda *_, body=body: body, "Read" if method == "GET" else "Write")
            yield f"{method} {_CONFERENCE}/{path}", route


_CONFERENCE: Final = "/v1.0/conference"
_MEETINGS: Final = f"{_CONFERENCE}/videoConferences"
_MEETING: Final = f"{_MEETINGS}/{{conferenceId}}"

ROUTES: Final[Mapping[str, Route]] = {
    f"POST {_MEETING}/lock": Route("lock", Calls._lock, "Write"),
    "POST /v1.0/oauth2/accessToken": Route("token", Calls._internal_token),
    "POST /v1.0/oauth2/corpAccessToken": Route("token", Calls._corp_token),
    "POST /v1.0/oauth2/{corpId}/token": Route("token", Calls._unified_token),
    f"POST {_MEETINGS}": Route("create", Calls._create, "Write"),
    f"POST {_MEETINGS}/query": Route("query", Calls._query, "Read"),
    f"GET {_MEETINGS}/scheduleConferences/{{id}}": Route("schedule", Calls._schedule, "Read"),
    f"GET {_MEETING}": Route("info", Calls._info, "Read"),
    f"DELETE {_MEETING}": Route("close", Calls._close, "Write"),
    f"GET {_MEETING}/members": Route("members", Calls._members, "Read"),
    f"GET {_CONFERENCE}/orgConferences": Route("list", Calls._list, "Read"),
    f"GET {_CONFERENCE}/roomCodes/{{roomCode}}/infos": Route("roomCode", Calls._room_code, "Read"),
    **dict(_samples()),
    "POST /v1.0/gateway/connections/open": Route("stream", Calls._open),
    "GET /connect": Route("connect", Calls._connect, counts=False),
}
"""The calls the sandbox knows by method and path, in the order in which they are tried."""

UNKNOWN: Final = Route("unknown", Calls._unknown, counts=False)  # any other call
