"""What the sandbox knows: meetings, access tokens, faults, and the calls it got. No I/O, no threads."""

from __future__ import annotations

import json
import secrets
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from airflow_provider_dingconf.sandbox.reserved import Reserved, Status, with_slow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_dingconf.sandbox.faults import Fault

TOKEN_LIFETIME: Final = 7200.0
"""Seconds, as with DingTalk."""

DEEPEST: Final = 100
"""Levels of JSON that the sandbox takes: far fewer than it could not show again."""

STREAM_TICKET_LIFETIME: Final = 90.0
"""Seconds, of the ticket for one connection to an event stream."""


class TooDeepError(ValueError):
    """Raised for JSON of more levels than are taken."""

    def __init__(self) -> None:
        super().__init__(f"The JSON has more than {DEEPEST} levels.")


def from_json(text: str | bytes) -> Any:
    """Return what is written in JSON.

    :raises ValueError: when it is none; :class:`TooDeepError` when it has more than ``DEEPEST`` levels.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise TooDeepError() from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value
    raise TooDeepError()


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


@dataclass(frozen=True)
class App:
    """An app that may ask for access tokens.

    :param client_id: AppKey of an internal app, SuiteKey of a third-party app.
    :param client_secret: AppSecret or SuiteSecret.
    :param permitted: whether it has the permission points of the conference calls.
    """

    client_id: str
    client_secret: str
    third_party: bool = False
    permitted: bool = True


CORP_ID: Final = "dingsandboxcorp"
SUITE_TICKET: Final = "sandbox-suite-ticket"
INTERNAL_APP: Final = App("dingsandboxapp", "sandbox-app-secret")
THIRD_PARTY_APP: Final = App("suitesandboxapp", "sandbox-suite-secret", third_party=True)
UNPERMITTED_APP: Final = App("dingsandboxunpermitted", "sandbox-unpermitted-secret", permitted=False)
APPS: Final = {app.client_id: app for app in (INTERNAL_APP, THIRD_PARTY_APP, UNPERMITTED_APP)}


@dataclass
class Conference:
    """A meeting. It is the sandbox's own object: it changes with the calls."""

    conference_id: str
    title: str
    room_code: str
    status: Status
    locked: bool = False
    participants: list[str] = field(default_factory=list)
    """Who is or was in the meeting."""
    refused: list[str] = field(default_factory=list)
    """Who was refused, once for each attempt."""
    start_time: int | None = None
    """Milliseconds since the epoch; likewise the end."""
    end_time: int | None = None
    creator_id: str = "sandbox"
    schedule_conference_id: str | None = None

    def refusal(self, user: str) -> str | None:
        """Return why the user cannot join now; None where nothing is in the way."""
        if self.status != "started":
            return self.status
        return "locked" if self.locked and user not in self.participants else None


@dataclass
class Call:
    """One call the sandbox got, as it came over the wire, and how it was answered."""

    name: str
    """One of ``faults.CALLS``."""
    method: str
    path: str
    """Undecoded, with the query."""
    headers: list[tuple[str, str]]
    body: bytes
    conference_id: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    """What the path and the query hold, decoded."""
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()).upper())
    time: float = field(default_factory=time.monotonic)
    """Monotonic, in seconds: when it came."""
    status: int | None = None
    """The HTTP status it was answered with; None: not yet, or never."""
    code: str | None = None
    """The error code it was answered with."""

    def header(self, name: str) -> str | None:
        """Return the value of a header, whatever its case; None where it was not sent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """Return the body as JSON.

        :raises ValueError: when it is none.
        """
        return from_json(self.body)


@dataclass
class _Token:
    app: App
    expires: float


@dataclass
class _Armed:
    """A fault, and what is left of it."""

    fault: Fault
    left: float
    until: float


class State:
    """All that the sandbox remembers.

    :param token_lifetime: of access tokens, in seconds.
    :param slow: seconds after which the slow meeting answers.
    """

    def __init__(self, token_lifetime: float = TOKEN_LIFETIME, slow: float = 5.0) -> None:
        self.token_lifetime = token_lifetime
        self.calls: list[Call] = []
        self.conferences: dict[str, Conference] = {}
        self._reserved = with_slow(slow)
        self._failures: Counter[str] = Counter()
        self._tokens: dict[str, _Token] = {}
        self._faults: list[_Armed] = []
        self.suite_ticket = SUITE_TICKET
        """The only one that is valid."""
        self._stream_tickets: dict[str, _Token] = {}
        self.stream_endpoint = ""
        """Where the server serves the event streams."""
        self.on_change: Callable[[str, Conference, str | None], object] = lambda *_change: None
        """Is told of what happens in a meeting that is not a reserved one: the scene, and the user."""

    # Meetings

    def create_conference(
        self,
        title: str = "Meeting",
        conference_id: str | None = None,
        status: Status = "started",
        **more: Any,
    ) -> Conference:
        """Create a meeting.

        :param more: ``room_code``, ``creator_id`` or ``schedule_conference_id``.
        :raises ValueError: for an id that is taken, or a status that is none.
        """
        if status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}, not {status!r}.")
        conference_id = conference_id or secrets.token_hex(12)
        if self.find(conference_id):
            raise ValueError(f"There is a meeting {conference_id!r} already.")
        return self._add(conference_id, title, status, **more)

    def find(self, conference_id: str) -> Conference | None:
        """Return a meeting, or None; a reserved one comes to be when it is first asked for."""
        reserved = self._reserved.get(conference_id)
        if reserved and conference_id not in self.conferences:
            self._add(conference_id, reserved.rehearses, reserved.status)
        return self.conferences.get(conference_id)

    def conference(self, conference_id: str) -> Conference:
        """Return a meeting.

        :raises KeyError: when there is none of this id.
        """
        conference = self.find(conference_id)
        if conference is None:
            raise KeyError(conference_id)
        return conference

    def _add(self, conference_id: str, title: str, status: Status, **more: Any) -> Conference:
        more.setdefault("room_code", f"{secrets.randbelow(9 * 10**9) + 10**9}")
        conference = Conference(conference_id, title, status="not_started", **more)
        self.conferences[conference_id] = conference
        if status != "not_started":
            self.start(conference_id)
        if status == "ended":
            self.end(conference_id)
        return conference

    def _changed(self, scene: str, conference: Conference, user: str | None = None) -> None:
        if conference.conference_id not in self._reserved:
            self.on_change(scene, conference, user)

    def start(self, conference_id: str) -> None:
        """Start a meeting; one that runs goes on.

        :raises ValueError: when it has ended.
        """
        conference = self.conference(conference_id)
        if conference.status == "ended":
            raise ValueError(f"The meeting {conference_id!r} has ended.")
        if conference.status == "not_started":
            conference.start_time = _now()
            conference.status = "started"
            self._changed("conference_created", conference)

    def end(self, conference_id: str) -> None:
        """End a meeting."""
        conference = self.conference(conference_id)
        conference.start_time = conference.start_time or _now()
        conference.end_time = conference.end_time or _now()
        if conference.status != "ended":
            conference.status = "ended"
            self._changed("conference_closed", conference)

    def join(self, conference_id: str, user: str) -> str | None:
        """Let a user join a meeting, and return why not: ``locked``, ``ended``, ``not_started``, or None."""
        conference = self.conference(conference_id)
        reason = conference.refusal(user)
        if reason:
            conference.refused.append(user)
        elif user not in conference.participants:
            conference.participants.append(user)
            self._changed("user_join", conference, user)
        return reason

    # Event streams

    def issue_stream_ticket(self, app: App) -> str:
        """Return a ticket for one connection to an app's event stream."""
        ticket = str(uuid.uuid4())
        self._stream_tickets[ticket] = _Token(app, time.monotonic() + STREAM_TICKET_LIFETIME)
        return ticket

    def take_stream_ticket(self, ticket: str) -> App | None:
        """Return the app that a ticket was issued for, once; None for one that is unknown or expired."""
        known = self._stream_tickets.pop(ticket, None)
        return known.app if known and known.expires > time.monotonic() else None

    # Access tokens

    def issue_token(self, app: App) -> str:
        """Return an access token: for an internal app the valid one, renewed, else a new one."""
        now = time.monotonic()
        token = None
        if not app.third_party:
            valid = (key for key, known in self._tokens.items() if known.app == app and known.expires > now)
            token = next(valid, None)
        token = token or secrets.token_hex(16)
        self._tokens[token] = _Token(app, now + self.token_lifetime)
        return token

    def token_app(self, token: str) -> App | None:
        """Return the app a token was issued for; None for one that is unknown, expired or revoked."""
        known = self._tokens.get(token)
        return known.app if known and known.expires > time.monotonic() else None

    def revoke_tokens(self) -> None:
        """Make every token issued so far unknown."""
        self._tokens.clear()

    def expire_tokens(self) -> None:
        """End the lifetime of every token issued so far."""
        for token in self._tokens.values():
            token.expires = time.monotonic()

    # Faults

    def fail(self, fault: Fault) -> None:
        """Put a fault in force, behind those that are."""
        forever = float("inf")
        left = forever if fault.times is None else fault.times
        until = forever if fault.duration is None else time.monotonic() + fault.duration
        self._faults.append(_Armed(fault, left, until))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    def take_fault(self, call: Call) -> Fault | None:
        """Return the first fault in force that hits a call, and count it."""
        now = time.monotonic()
        self._faults = [armed for armed in self._faults if armed.left and armed.until > now]
        for armed in self._faults:
            if armed.fault.hits(call.name, call.path, call.body):
                armed.left -= 1
                return armed.fault
        return None

    def reserved_fault(self, conference_id: str | None) -> Fault | None:
        """Return what goes wrong with a call about a reserved meeting, and count it."""
        row: Reserved | None = self._reserved.get(conference_id or "")
        if row is None or row.fault is None:
            return None
        self._failures[row.conference_id] += 1
        if row.fault.times is not None and self._failures[row.conference_id] > row.fault.times:
            del self._failures[row.conference_id]
            return None
        return row.fault


def _now() -> int:
    return int(time.time() * 1000)
