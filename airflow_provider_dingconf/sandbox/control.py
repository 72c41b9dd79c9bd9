"""The sandbox's own HTTP interface, under ``/sandbox/``: for processes other than the one it runs in.

Each row of :data:`ROUTES` holds a function from what is asked to what is answered. A :class:`ValueError`
becomes a 400 with its text, a :class:`MissingError` a 404. What it shows of calls is for a screen: secrets
and tokens are masked.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from airflow_provider_dingconf.sandbox.faults import Fault
from airflow_provider_dingconf.sandbox.state import TooDeepError, from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_dingconf.sandbox.state import Call, Conference, State
    from airflow_provider_dingconf.sandbox.stream import Event, Streams


class MissingError(LookupError):
    """Raised when what a call is about does not exist."""


@dataclass(frozen=True)
class Asked:
    """What a call of the control interface brings: the path's parameters, and the object of its body."""

    state: State
    streams: Streams
    path: Mapping[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Route:
    """One call of the control interface.

    :param fields: what the body may hold, and of which type.
    """

    method: str
    path: str
    answer: Callable[[Asked], Any]
    fields: Mapping[str, type] | None = None


def loopback(url: str) -> bool:
    """Whether a ``Host`` or ``Origin`` header names this machine.

    A web page that rebinds its own host name to 127.0.0.1 comes with that name.
    """
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname
    except ValueError:
        return False
    return host in ("127.0.0.1", "localhost", "::1")


def payload(route: Route, raw: bytes) -> dict[str, Any]:
    """Return the body of a call when it is what the route takes; none is as good as an empty object.

    :raises ValueError: when it is not; says why.
    """
    try:
        body = from_json(raw or b"{}")
    except TooDeepError:
        raise
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ValueError("The body is not a JSON object.")
    if route.fields is not None:
        for name, value in body.items():
            if name not in route.fields:
                known = ", ".join(route.fields) or "nothing"
                raise ValueError(f"Unknown field {name!r}; known: {known}.")
            if not isinstance(value, route.fields[name]):
                raise ValueError(f"{name} is a {route.fields[name].__name__}, not {value!r}.")
    return body


_SECRET: Final = re.compile(r"secret|ticket|password|authorization|cookie|(?<!next)token", re.IGNORECASE)
_MASK: Final = "***"


def masked(value: Any) -> Any:
    """Return a JSON value with the values of all keys that sound secret masked."""
    if isinstance(value, dict):
        return {key: _MASK if _SECRET.search(key) else masked(inner) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, list) else value


def _shown(call: Call) -> dict[str, Any]:
    path, mark, query = call.path.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    try:
        body = masked(call.json()) if call.body else None
    except ValueError:
        body = f"{len(call.body)} bytes that are not JSON, or of too many levels"
    return {
        "call": call.name,
        "method": call.method,
        "path": path + mark + "&".join(k + is_ + (_MASK if _SECRET.search(k) else v) for k, is_, v in pairs),
        "headers": [[name, _MASK if _SECRET.search(name) else value] for name, value in call.headers],
        "body": body,
        "conference_id": call.conference_id,
        "status": call.status,
        "code": call.code,
        "request_id": call.request_id,
        "time": call.time,
    }


def _conference(asked: Asked) -> Conference:
    conference = asked.state.find(asked.path["id"])
    if conference is None:
        raise MissingError(f"There is no meeting {asked.path['id']!r}.")
    return conference


def _list(asked: Asked) -> Any:
    return {"conferences": [asdict(conference) for conference in asked.state.conferences.values()]}


def _create(asked: Asked) -> Any:
    return asdict(asked.state.create_conference(**asked.body))


def _show(asked: Asked) -> Any:
    return asdict(_conference(asked))


def _join(asked: Asked) -> Any:
    conference = _conference(asked)
    user = asked.body.get("user")
    if not user:
        raise ValueError("user is missing.")
    reason = asked.state.join(conference.conference_id, user)
    return {"joined": reason is None, "reason": reason}


def _start(asked: Asked) -> Any:
    asked.state.start(_conference(asked).conference_id)
    return _show(asked)


def _end(asked: Asked) -> Any:
    asked.state.end(_conference(asked).conference_id)
    return _show(asked)


def _calls(asked: Asked) -> Any:
    return {"calls": [_shown(call) for call in asked.state.calls]}


def _clear_calls(asked: Asked) -> Any:
    asked.state.calls.clear()
    return {}


def _fail(asked: Asked) -> Any:
    asked.state.fail(Fault.from_json(asked.body))
    return {}


def _heal(asked: Asked) -> Any:
    asked.state.heal()
    return {}


def _revoke(asked: Asked) -> Any:
    asked.state.revoke_tokens()
    return {}


def _events(asked: Asked) -> Any:
    return {"connections": asked.streams.connected, "events": [_event(one) for one in asked.streams.events]}


def _event(event: Event) -> dict[str, Any]:
    shown = asdict(event) | {"app": event.app.client_id}
    return shown | {"data": masked(event.data)}


def _push(asked: Asked) -> Any:
    if not asked.body.get("event_type"):
        raise ValueError("event_type is missing.")
    return {"event_id": asked.streams.push(**{"data": {}, **asked.body})}


def _disconnect(asked: Asked) -> Any:
    asked.streams.disconnect(**asked.body)
    return {}


def _unknown(_asked: Asked) -> Any:
    known = ", ".join(f"{route.method} {route.path}" for route in ROUTES[:-1])
    raise MissingError(f"The sandbox has no such call. It has {known}.")


_CONFERENCES: Final = "/sandbox/conferences"
_CREATED_WITH: Final = (
    "title",
    "conference_id",
    "status",
    "room_code",
    "creator_id",
    "schedule_conference_id",
)

ROUTES: Final = (
    Route("GET", _CONFERENCES, _list),
    Route("POST", _CONFERENCES, _create, dict.fromkeys(_CREATED_WITH, str)),
    Route("GET", _CONFERENCES + "/{id}", _show),
    Route("POST", _CONFERENCES + "/{id}/join", _join, {"user": str}),
    Route("POST", _CONFERENCES + "/{id}/start", _start, {}),
    Route("POST", _CONFERENCES + "/{id}/end", _end, {}),
    Route("GET", "/sandbox/calls", _calls),
    Route("DELETE", "/sandbox/calls", _clear_calls, {}),
    # Its fields are those of a fault, which checks them itself.
    Route("POST", "/sandbox/faults", _fail),
    Route("DELETE", "/sandbox/faults", _heal, {}),
    Route("POST", "/sandbox/tokens/revoke", _revoke, {}),
    Route("GET", "/sandbox/events", _events),
    Route(
        "POST", "/sandbox/events", _push, {"event_type": str, "data": dict, "event_id": str, "corp_id": str}
    ),
    Route("POST", "/sandbox/streams/disconnect", _disconnect, {"politely": bool}),
    # Last: whatever no other row takes.
    Route("*", "/sandbox{rest:.*}", _unknown),
)
"""The calls of the control interface, in the order in which they are tried."""
