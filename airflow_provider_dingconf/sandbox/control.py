"""The sandbox's own HTTP interface, under ``/sandbox/``: for processes other than the one it runs in.

Each row of :data:`ROUTES` calls a method of the sandbox with the parameters of the path and the fields of the
body; the method's own annotations check them. Secrets and access tokens in the responses are masked.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pydantic import ConfigDict, ValidationError, validate_call
from pydantic_core import from_json

from airflow_provider_dingconf.sandbox.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_dingconf.sandbox.server import Sandbox
    from airflow_provider_dingconf.sandbox.state import Call

_SECRET: Final = re.compile(r"secret|ticket|password|authorization|cookie|(?<!next)token", re.IGNORECASE)
_MASK: Final = "***"


def loopback(url: str) -> bool:
    """Return whether a ``Host`` or ``Origin`` header names this machine.

    A web page that rebinds its own host name to 127.0.0.1 sends that name.
    """
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname
    except ValueError:
        return False
    return host in ("127.0.0.1", "localhost", "::1")


def respond(sandbox: Sandbox, row: str, path: Mapping[str, str], raw: bytes) -> tuple[int, Any]:
    """Return the HTTP status and the body of the response to a call: a row of :data:`ROUTES`."""
    method, show = ROUTES[row]
    method = getattr(type(sandbox), method) if isinstance(method, str) else method
    try:
        body = from_json(raw or b"{}")
        if not isinstance(body, dict):
            return 400, {"error": "The body is not a JSON object."}
        with sandbox.lock:
            return 200, masked(show(_checked(method)(sandbox, *path.values(), **body)))
    except KeyError as missing:
        return 404, {"error": f"There is no meeting {missing}."}
    except ValidationError as wrong:
        complaints = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong.errors()]
        return 400, {"error": "; ".join(complaints)}
    except ValueError as wrong:
        return 400, {"error": str(wrong)}


@cache
def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    return validate_call(config=ConfigDict(strict=True))(method)


def masked(value: Any) -> Any:
    """Return a JSON value with the values of all keys masked whose names suggest a secret."""
    if isinstance(value, dict):
        return {key: _MASK if _SECRET.search(key) else masked(inner) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, list) else value


def _call(call: Call) -> dict[str, Any]:
    path, mark, query = call.path.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    try:
        body = call.json() if call.body else None
    except ValueError:
        body = f"{len(call.body)} bytes that are not JSON, or have too many levels"
    names = ("method", "conference_id", "status", "code", "request_id", "time")
    return {
        "call": call.name,
        "path": path + mark + "&".join(k + is_ + (_MASK if _SECRET.search(k) else v) for k, is_, v in pairs),
        "headers": [[name, _MASK if _SECRET.search(name) else value] for name, value in call.headers],
        "body": body,
        **{name: getattr(call, name) for name in names},
    }


def _create(sandbox: Any, **fields: Any) -> Any:
    return sandbox.conference(_checked(type(sandbox).create_conference)(sandbox, **fields))


def _fault(sandbox: Any, **fields: Any) -> None:
    sandbox.fail(Fault(**fields))


def _events(sandbox: Any) -> Any:
    events = [asdict(event) | {"app": event.app.client_id} for event in sandbox.events]
    return {"connections": sandbox.streams, "events": events}


def _done(_result: None) -> Any:
    return {}


_MEETINGS: Final = "/sandbox/conferences"
_MEETING: Final = _MEETINGS + "/{conference_id}"

ROUTES: Final[Mapping[str, tuple[str | Callable[..., Any], Callable[[Any], Any]]]] = {
    f"GET {_MEETINGS}": (lambda box: {"conferences": [*map(asdict, box.conferences.values())]}, dict),
    f"POST {_MEETINGS}": (_create, asdict),
    f"GET {_MEETING}": ("conference", asdict),
    f"POST {_MEETING}/start": ("start", asdict),
    f"POST {_MEETING}/end": ("end", asdict),
    f"POST {_MEETING}/join": ("try_to_join", lambda reason: {"joined": not reason, "reason": reason}),
    f"POST {_MEETING}/leave": ("leave", asdict),
    "GET /sandbox/calls": (lambda box: {"calls": [*map(_call, box.calls)]}, dict),
    "DELETE /sandbox/calls": ("clear", _done),
    "POST /sandbox/faults": (_fault, _done),
    "DELETE /sandbox/faults": ("heal", _done),
    "POST /sandbox/tokens/revoke": ("revoke_tokens", _done),
    "GET /sandbox/events": (_events, dict),
    "POST /sandbox/events": ("push_event", lambda event_id: {"event_id": event_id}),
    "POST /sandbox/streams/disconnect": ("disconnect_streams", _done),
}
"""By method and path: what a call does (a method of the sandbox, or a function), and what it shows."""
