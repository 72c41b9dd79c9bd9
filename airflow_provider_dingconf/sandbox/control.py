"""The sandbox's own HTTP interface, under ``/sandbox/``: for processes other than the one it runs in.

Each row of :data:`ROUTES` calls a method of the sandbox, or a function, with the parameters of the path and
the fields of the body; its annotations check them. Secrets and access tokens in the responses are masked.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from pydantic import ConfigDict, ValidationError, validate_call
from pydantic_core import to_jsonable_python

from airflow_provider_dingconf.sandbox.faults import Call, Fault, Response
from airflow_provider_dingconf.sandbox.meetings import Meetings

_THIS_MACHINE: Final = re.compile(r"(https?://)?(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
_SECRET: Final = re.compile(r"secret|ticket|password|authorization|cookie|(?<!next)token", re.IGNORECASE)
_MASK: Final = "***"
_checked: Final = cache(validate_call(config=ConfigDict(strict=True)))


def respond(sandbox: Meetings, call: Call, row: Callable[..., Any] | None, path: dict[str, str]) -> Response:
    """Return the response to a call: of a row of :data:`ROUTES`, with these parameters of its path."""
    # A web page that rebinds its own host name to 127.0.0.1 sends that name as the host.
    callers = call.header("Host") or "", call.header("Origin") or "http://localhost"
    if not all(map(_THIS_MACHINE.fullmatch, callers)):
        return Response(403, {"error": "Only this machine may call the sandbox."})
    if row is None:
        return Response(404, {"error": f"The sandbox has no such call. It has {', '.join(ROUTES)}."})
    try:
        body = call.json() if call.body else {}
        if not isinstance(body, dict):
            return Response(400, {"error": "The body is not a JSON object."})
        with sandbox.lock:
            shown = to_jsonable_python(_checked(row)(sandbox, *path.values(), **body) or {})
        return Response(body=_masked(shown))
    except KeyError as missing:
        return Response(404, {"error": f"There is no meeting {missing}."})
    except ValidationError as wrong:
        complaints = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong.errors()]
        return Response(400, {"error": "; ".join(complaints)})
    except ValueError as wrong:
        return Response(400, {"error": str(wrong)})


def _masked(value: Any) -> Any:
    """Return a JSON value with the values of all keys masked whose names suggest a secret."""
    if isinstance(value, dict):
        return {key: _MASK if _SECRET.search(key) else _masked(inner) for key, inner in value.items()}
    return [_masked(inner) for inner in value] if isinstance(value, list) else value


def _create(sandbox: Any, **fields: Any) -> Any:
    return sandbox.conference(_checked(Meetings.create_conference)(sandbox, **fields))


def _join(sandbox: Any, conference_id: str, user: str) -> Any:
    reason = sandbox.conference(conference_id).refusal(user)
    return {"joined": sandbox.join(conference_id, user), "reason": reason}


def _call(call: Call) -> dict[str, Any]:
    path, mark, query = call.path.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    try:
        body = call.json() if call.body else None
    except ValueError:
        body = f"{len(call.body)} bytes that are not JSON, or have too many levels"
    return vars(call) | {
        "call": call.name,
        "path": path + mark + "&".join(k + is_ + (_MASK if _SECRET.search(k) else v) for k, is_, v in pairs),
        "headers": [[name, _MASK if _SECRET.search(name) else value] for name, value in call.headers],
        "body": body,
    }


def _events(sandbox: Any) -> Any:
    events = [vars(event) | {"app": event.app.client_id} for event in sandbox.events]
    return {"connections": sandbox.streams, "events": events}


ROUTES: Final[Mapping[str, Callable[..., Any]]] = {
    "GET /sandbox/conferences": lambda box: {"conferences": [*box.conferences.values()]},
    "POST /sandbox/conferences": _create,
    "GET /sandbox/conferences/{conference_id}": Meetings.conference,
    "POST /sandbox/conferences/{conference_id}/start": Meetings.start,
    "POST /sandbox/conferences/{conference_id}/end": Meetings.end,
    "POST /sandbox/conferences/{conference_id}/join": _join,
    "POST /sandbox/conferences/{conference_id}/leave": Meetings.leave,
    "GET /sandbox/calls": lambda box: {"calls": [*map(_call, box.calls)]},
    "DELETE /sandbox/calls": Meetings.clear,
    "POST /sandbox/faults": lambda box, **fields: box.fail(Fault(**fields)),
    "DELETE /sandbox/faults": Meetings.heal,
    "POST /sandbox/tokens/revoke": Meetings.revoke_tokens,
    "GET /sandbox/events": _events,
    "POST /sandbox/events": lambda box, **fields: {"event_id": _checked(Meetings.push_event)(box, **fields)},
    "POST /sandbox/streams/disconnect": Meetings.disconnect_streams,
}
"""What each call does, by method and path; it returns what is shown: an object, or nothing."""
