"""DingTalk's side of the calls: who may call, what a call does, and its response.

Each row of :data:`ROUTES` is one call; its method returns the body of a success. An error is a
:class:`RefusalError`; if DingTalk's documentation does not name the error of an input, it is the nearest
documented one.
"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER
from airflow_provider_dingconf.sandbox.faults import RESERVED, UNKNOWN_PATH, Response, denied, error
from airflow_provider_dingconf.sandbox.meetings import Conference, Meetings, describe, member
from airflow_provider_dingconf.sandbox.state import APPS, CORP_ID, App, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_provider_dingconf.sandbox.faults import Fault

SWITCHING: Final = 101  # the HTTP status of a call that goes on as a WebSocket
_CHINA: Final = timezone(timedelta(hours=8))
_PAGE, _PAGE_OF_MEMBERS = 20, 128
_LONGEST_TITLE, _SHOWN_TITLE = 256, 50


class RefusalError(Exception):
    """Raised for a call that gets an error response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


def _refuse(code: str, message: str | None = None) -> NoReturn:
    raise RefusalError(error(code, message))


def _require(condition: object, code: str, message: str | None = None) -> None:
    if not condition:
        _refuse(code, message)


# What a call sent


def _object(call: Call, code: str = "paramsError") -> dict[str, Any]:
    """Return the JSON object that is the body of a call."""
    try:
        body = call.json() if "json" in (call.header("Content-Type") or "") else None
    except ValueError:
        body = None
    return body if isinstance(body, dict) else _refuse(code)


def _fields(call: Call, *names: str, kind: type = str) -> list[Any]:
    """Return these fields of the body of a call, which must be of a type, and not empty."""
    body = _object(call, "invalidParameter")
    for name in names:
        valid = body.get(name) and isinstance(body[name], kind)
        _require(valid, f"Missing{name}", f"{name} is mandatory for this action.")
    return [body[name] for name in names]


def _are_fields(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number(call: Call, name: str, default: int) -> int:
    text = call.parameters.get(name) or str(default)
    _require(re.fullmatch(r"[0-9]{1,9}", text), "paramError")
    return int(text)


def _app(code: str, client_id: str, client_secret: str) -> App:
    app = APPS.get(client_id) or _refuse(code)
    _require(app.client_secret == client_secret, code)
    return app


def _page(call: Call, key: str, items: list[Any], most: int = _PAGE, has_more: bool = False) -> Any:
    first = _number(call, "nextToken", 0)
    last = first + (_number(call, "maxResults", most) or most)
    page = {key: items[first:last], "totalCount": len(items)}
    if last < len(items):
        page["nextToken"] = str(last)
    # Of some lists, DingTalk sends no hasMore: an empty nextToken ends them.
    return page | {"hasMore": last < len(items)} if has_more else {"nextToken": "", **page}


class Calls(Meetings):
    """What the calls do."""

    # Access tokens

    def _internal_token(self, call: Call) -> Any:
        app = _app("invalidClientIdOrSecret", *_fields(call, "appKey", "appSecret"))
        _require(not app.third_party, "invalidClientIdOrSecret")
        return self._token(app, "accessToken", "expireIn")

    def _corp_token(self, call: Call) -> Any:
        key, secret, corp_id, ticket = _fields(call, "suiteKey", "suiteSecret", "authCorpId", "suiteTicket")
        app = _app("invalidSuiteKey", key, secret)
        _require(app.third_party, "invalidSuiteKey")
        _require(ticket == self.suite_ticket, "invalidSuiteTicket")
        _require(corp_id == CORP_ID, "invalidAuthInfo")
        return self._token(app, "accessToken", "expireIn")

    def _unified_token(self, call: Call) -> Any:
        client_id, secret, grant_type = _fields(call, "client_id", "client_secret", "grant_type")
        right_corp = call.parameters["corpId"] == CORP_ID
        _require(grant_type == "client_credentials", "unsupported.grant.type")
        _require(right_corp or client_id in APPS, "unknownError")
        app = _app("invalid.client", client_id, secret)
        _require(right_corp, "unauthorized.client")
        return self._token(app, "access_token", "expires_in")

    def _token(self, app: App, token_key: str, lifetime_key: str) -> Any:
        return {token_key: self.issue_token(app), lifetime_key: math.ceil(self.token_lifetime)}

    # Meetings

    def _create(self, call: Call) -> Any:
        sent = _object(call)
        title, creator, invited = sent.get("confTitle"), sent.get("userId"), sent.get("inviteUserIds") or []
        _require(isinstance(title, str) and 0 < len(title.strip()) <= _LONGEST_TITLE, "paramsTitleError")
        _require(creator and _are_fields([creator]) and _are_fields(invited), "paramsError")
        made = self.create_conference(str(title)[:_SHOWN_TITLE], creator_id=str(creator), invited=invited)
        return describe(self.conference(made), "create")

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
        return {"confInfo": describe(self._meeting(call, "roomNotFound"), "info")}

    def _query(self, call: Call) -> Any:
        wanted = _object(call).get("conferenceIdList") or []
        _require(wanted and _are_fields(wanted), "paramsError")
        found = filter(None, map(self.find, wanted))
        return {"infos": [describe(one, "query") for one in found if one.status == "started"]}

    def _members(self, call: Call) -> Any:
        conference = self._meeting(call, "roomNotFound")
        members = [member(conference, user) for user in conference.participants]
        return _page(call, "memberModels", members, _PAGE_OF_MEMBERS)

    def _list(self, call: Call) -> Any:
        running = [describe(one, "list") for one in self.conferences.values() if one.status == "started"]
        return _page(call, "onGoingConfList", running, has_more=True)

    def _room_code(self, call: Call) -> Any:
        code = call.parameters["roomCode"]
        _require(code.isdecimal(), "invalidRoomCode")
        found = [describe(one, "roomCode") for one in self.conferences.values() if one.room_code == code]
        return _page(call, "conferenceList", found, has_more=True)

    def _schedule(self, call: Call) -> Any:
        wanted = call.parameters["id"]
        found = (one for one in self.conferences.values() if one.schedule_conference_id == wanted)
        held = [describe(one, "schedule") for one in found if one.start_time]
        return _page(call, "conferenceList", sorted(held, key=lambda one: one["startTime"]))

    def _meeting(self, call: Call, code: str) -> Conference:
        return self.find(call.conference_id or "") or _refuse(code)

    # Event streams, and unknown paths

    def _open(self, call: Call) -> Any:
        app = _app("authFailed", *_fields(call, "clientId", "clientSecret"))
        _fields(call, "subscriptions", kind=list)
        ticket = str(uuid.uuid4())
        self.tickets[ticket] = app, self.clock() + self.stream_ticket_lifetime
        return {"endpoint": f"{self.url.replace('http', 'ws', 1)}/connect", "ticket": ticket}

    def _connect(self, call: Call) -> Any:
        """Let an app connect to its event stream; the response's body is the app, for the server."""
        app, expires = self.tickets.pop(call.parameters.get("ticket", ""), (None, 0.0))
        _require(expires > self.clock(), "authFailed", "The ticket is not valid.")
        return Response(SWITCHING, app)

    def _unknown(self, call: Call) -> Any:
        if not re.match(r"/v\d+\.\d+/", call.path):
            return UNKNOWN_PATH
        _refuse("InvalidAction.NotFound", "Specified api is not found, please check your url and method.")

    # Who may call

    def admit(self, route: Route, call: Call) -> Fault | None:
        """Check the limits and the access token of a call; return what its meeting rehearses.

        :raises RefusalError: a limit is exceeded, the token is not valid, or the app lacks a permission.
        """
        if not route.counts:
            return None
        self._used += 1
        within_quota = self.quota is None or self._used <= self.quota
        _require(within_quota, "Forbidden.AccessDenied.ApiCountLimitForOrg")
        moment, recent = self.clock(), self._recent[self._client_id(route, call), route]
        while recent and recent[0] + 1 <= moment:
            recent.popleft()
        if self.calls_per_second is not None and len(recent) >= self.calls_per_second:
            # DingTalk names whole seconds: the limit is over when the one it names has come.
            end = datetime.fromtimestamp(math.ceil(time.time() + recent[0] + 1 - moment), _CHINA)
            message = f"接口调用超过频率限制，限制将在 {end:%Y-%m-%d %H:%M:%S} 结束"
            _refuse("Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", message)
        recent.append(moment)
        # A new meeting has no id: its creator's decides.
        creator = _object(call).get("userId") if call.name == "create" else None
        return self.reserved_fault(str(creator or call.conference_id))

    def respond(self, route: Route, call: Call) -> Response:
        """Let a call take effect, and return its response."""
        result = route.respond(self, call)
        return result if isinstance(result, Response) else Response(200, result)

    def _client_id(self, route: Route, call: Call) -> str:
        """Return the app's Client ID; its access token must be valid if the call needs one."""
        if route.scope is None:
            body = _object(call, "invalidParameter")
            return str([body[key] for key in ("appKey", "suiteKey", "client_id", "clientId") if key in body])
        token = call.header(TOKEN_HEADER) or ""
        message = f"{TOKEN_HEADER} is mandatory for this action."
        _require(token, "AuthenticationFailed.MissingParameter", message)
        app = self.token_app(token) or _refuse("InvalidAuthentication")
        if not app.permitted:
            raise RefusalError(denied(route.scope))
        return app.client_id


# The table


class Route(NamedTuple):
    """One call of DingTalk's API."""

    name: str  # in faults and records
    respond: Callable[[Any, Call], Any]  # returns the body of a success, or a whole response
    scope: str | None = None  # the permission point it needs, Read or Write; None: no access token either
    counts: bool = True  # whether limits apply to it

    def name_of(self, body: bytes) -> str:
        """Return the name of a call with this body: the lock call can unlock."""
        unlocks = self.name == "lock" and re.search(rb'"action"\s*:\s*"unlock"', body)
        return "unlock" if unlocks else self.name


# What the other conference calls of DingTalk's official SDK return, and the calls; ``~`` is a meeting.
_SAMPLES: Final = """
{"success": true} PUT scheduleConferences, POST scheduleConferences/cancel, PUT scheduleConferences/settings,
 POST videoConferences/mcus/invite, POST ~/allMembers/mute, POST ~/coHosts/set, POST ~/focus,
 POST ~/members/kick, POST ~/members/mute, POST ~/members/updateNick, POST ~/subtitleEvents,
 POST ~/users/invite
{"code": "200"} POST videoConferences/enterpriseSetting/record/whiteAccount, POST ~/cloudRecords/start,
 POST ~/cloudRecords/stop, POST ~/minutes/pause, POST ~/minutes/start, POST ~/streamOuts/stop
{"code": "200", "case": ""} PUT ~, PUT ~/extInfo
{"list": [], "nextToken": ""} GET videoConferences/histories/dataLists, GET ~/details
{"result": {"customShortLink": "link"}} POST customShortLinks
{"phones": [], "requestId": "id", "roomCode": "1", "scheduleConferenceId": "s", "url": "url"}
 POST scheduleConferences
{"endTime": 1, "phones": [], "requestId": "id", "roomCode": "1", "scheduleConferenceId": "s", "startTime": 1,
 "title": "title", "url": "url"} GET scheduleConferences/{scheduleConferenceId}/infos
{"scheduleConfSettingModel": {"cohostUnionIds": [], "confAllowedCorpId": "corp", "hostUnionId": "host",
 "lockRoom": 1, "moziConfVirtualExtraSetting": {"enableChat": 1, "enableWebAnonymousJoin": true,
 "joinBeforeHost": 1, "lockMediaStatusMicMute": 1, "lockNick": 1, "moziConfExtensionAppSettings": [],
 "waitingRoom": 1}, "muteOnJoin": 1, "screenShareForbidden": 1}} GET scheduleConferences/settings
{"memberModelMap": {}, "onGoingConfIdList": []} GET users/lists
{"loginInfo": {"loginUrl": "url"}, "success": true} POST videoConferences/createAutoLoginUrl
{"hasMore": false, "paragraphList": []} GET ~/cloudRecords/getTexts
{"videoList": []} GET ~/cloudRecords/getVideos
{"duration": 1, "fileSize": 1, "mp4FileUrl": "url", "playUrl": "url", "status": 1}
 GET ~/cloudRecords/videos/getPlayInfos
{"minutesDocUrl": "url"} GET ~/flashMinutes/document/generate
{"code": "200", "taskUuid": "id"} POST ~/flashMinutes/recordPermissions
{"recordMinutesUrls": []} GET ~/flashMinutes/recordUrls
{"flashMinutesSummary": {"status": 1, "summary": []}} GET ~/flashMinutes/summaries
{"conferenceId": "id", "creatorId": "creator", "creatorNick": "Creator", "deptName": "dept", "endTime": 1,
 "freeType": "type", "scene": "scene", "startTime": 1, "timeLength": 1, "title": "title", "userCount": 1}
 GET ~/infos
{"metricMap": {}} POST ~/lastMetricDatas/query
{"metricDataList": []} GET ~/metricDatas
{"audioList": []} GET ~/minutes/audioInfos
{"action": [], "fullSummary": "text"} GET ~/minutes/meetingResult
{"summary": {"actions": [], "autoChapters": [], "conversationalSummary": [], "keySentences": [],
 "keywords": [], "paragraphSummary": "text", "questionsAnsweringSummary": []}} POST ~/minutes/summaries/query
{"hasMore": false, "nextToken": "", "paragraphList": []} GET ~/minutes/textInfos
{"failStreamMap": {}, "successStreamMap": {}} POST ~/streamOuts/start
"""


def _samples() -> Iterator[tuple[str, Route]]:
    for text, rows in re.findall(r"^(\{.*?\}) ([A-Z]+ .*)$", _SAMPLES.replace("\n ", " "), re.MULTILINE):
        body = json.loads(text)
        for row in rows.split(", "):
            scope = "Read" if row.startswith("GET") else "Write"
            yield row, Route("other", lambda *_, body=body: body, scope)


_ROWS: Final[Mapping[str, Route]] = {
    "POST ~/lock": Route("lock", Calls._lock, "Write"),
    "POST /v1.0/oauth2/accessToken": Route("token", Calls._internal_token),
    "POST /v1.0/oauth2/corpAccessToken": Route("token", Calls._corp_token),
    "POST /v1.0/oauth2/{corpId}/token": Route("token", Calls._unified_token),
    "POST videoConferences": Route("create", Calls._create, "Write"),
    "POST videoConferences/query": Route("query", Calls._query, "Read"),
    "GET videoConferences/scheduleConferences/{id}": Route("schedule", Calls._schedule, "Read"),
    "GET ~": Route("info", Calls._info, "Read"),
    "DELETE ~": Route("close", Calls._close, "Write"),
    "GET ~/members": Route("members", Calls._members, "Read"),
    "GET orgConferences": Route("list", Calls._list, "Read"),
    "GET roomCodes/{roomCode}/infos": Route("roomCode", Calls._room_code, "Read"),
    **dict(_samples()),
    "POST /v1.0/gateway/connections/open": Route("stream", Calls._open),
    "GET /connect": Route("connect", Calls._connect, counts=False),
}


def _full(row: str) -> str:
    method, path = row.replace("~", "videoConferences/{conferenceId}").split()
    return f"{method} {path if path.startswith('/') else '/v1.0/conference/' + path}"


ROUTES: Final[Mapping[str, Route]] = {_full(row): route for row, route in _ROWS.items()}
"""The calls the sandbox knows by method and path, in the order in which they are tried."""

UNKNOWN: Final = Route("unknown", Calls._unknown, counts=False)
"""Any other call."""
