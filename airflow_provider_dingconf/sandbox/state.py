"""What the sandbox knows: meetings, access tokens, limits, faults, and the calls it received. No I/O."""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, get_args

from pydantic_core import from_json

from airflow_provider_dingconf.sandbox.reserved import Status, with_slow

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_dingconf.sandbox.faults import Fault

T = TypeVar("T")

TOKEN_LIFETIME: Final = 7200.0  # seconds, as with DingTalk
STREAM_TICKET_LIFETIME: Final = 90.0
FOREVER: Final = float("inf")


@dataclass(frozen=True)
class App:
    """An app that can obtain access tokens: an internal one, or a third-party one."""

    client_id: str
    client_secret: str
    third_party: bool = False
    permitted: bool = True  # whether it has the permission points of the conference calls


CORP_ID: Final = "dingsandboxcorp"
SUITE_TICKET: Final = "sandbox-suite-ticket"
INTERNAL_APP: Final = App("dingsandboxapp", "sandbox-app-secret")
THIRD_PARTY_APP: Final = App("suitesandboxapp", "sandbox-suite-secret", third_party=True)
UNPERMITTED_APP: Final = App("dingsandboxunpermitted", "sandbox-unpermitted-secret", permitted=False)
APPS: Final = {app.client_id: app for app in (INTERNAL_APP, THIRD_PARTY_APP, UNPERMITTED_APP)}


def now() -> int:
    """Return the time as DingTalk gives it, in milliseconds since the epoch."""
    return int(time.time() * 1000)


def _password() -> str:
    return f"{secrets.randbelow(10**6):06}"


def _room_code() -> str:
    return f"{secrets.randbelow(9 * 10**9) + 10**9}"


@dataclass
class Conference:
    """A meeting. It is the sandbox's own object: it changes with the calls. Times are in milliseconds."""

    conference_id: str
    title: str
    room_code: str = field(default_factory=_room_code)
    status: Status = "not_started"
    locked: bool = False
    participants: list[str] = field(default_factory=list)  # who is or was in the meeting
    joined: dict[str, int] = field(default_factory=dict)  # when they joined, the first time
    left: dict[str, int] = field(default_factory=dict)  # when they left, unless they are still in it
    invited: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # who could not join, once for each attempt
    start_time: int | None = None
    end_time: int | None = None
    creator_id: str = "sandbox"
    schedule_conference_id: str | None = None
    password: str = field(default_factory=_password)
    host_password: str = field(default_factory=_password)

    def has(self, user: str) -> bool:
        """Return whether a user is in the meeting now."""
        return user in self.participants and user not in self.left

    def refusal(self, user: str) -> str | None:
        """Return why a user cannot join now; None if nothing prevents it."""
        if self.status != "started":
            return self.status
        return "locked" if self.locked and not self.has(user) else None


@dataclass
class Call:
    """One call the sandbox received, unchanged, and the status and error code of its response."""

    name: str  # one of ``faults.CALLS``
    method: str
    path: str  # not decoded, with the query
    headers: list[tuple[str, str]]
    body: bytes
    conference_id: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)  # of the path and of the query, decoded
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()).upper())
    time: float = field(default_factory=time.monotonic)  # when it came, in seconds
    status: int | None = None  # None: no response yet, or never
    code: str | None = None

    def header(self, name: str) -> str | None:
        """Return the value of a header, in any case; None if it was not sent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """Return the body as JSON; a ValueError says that it is none, or of too many levels."""
        return from_json(self.body)


def locked(kind: type[T]) -> type[T]:
    """Let the server's thread and the callers' threads share a class: one public method runs at a time."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self.lock:
                return method(self, *args, **kwargs)

        return call

    for name, method in list(vars(kind).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(kind, name, guarded(method))
    return kind


@locked
@dataclass(kw_only=True, eq=False, repr=False)
class State:
    """All that the sandbox remembers; its parameters are described at :class:`Sandbox`."""

    token_lifetime: float = TOKEN_LIFETIME
    stream_ticket_lifetime: float = STREAM_TICKET_LIFETIME
    slow: float = 5.0
    quota: int | None = None
    calls_per_second: int | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.valid_suite_ticket = SUITE_TICKET
        self.stream_endpoint = ""
        self.conferences: dict[str, Conference] = {}
        self._reserved = with_slow(self.slow)
        self._failures: Counter[str] = Counter()
        self._used = 0
        self._recent: dict[tuple[str, str], deque[float]] = {}
        self._calls: list[Call] = []
        self._grants: dict[str, tuple[App, float]] = {}
        self._tickets: dict[str, tuple[App, float]] = {}
        self._faults: list[list[Any]] = []  # each with the calls it still hits, and its end

    def _changed(self, scene: str, conference: Conference, user: str | None = None) -> None:
        """Receive what happened in a meeting: the scene of the event, and the user."""

    # Meetings

    def create_conference(
        self,
        title: str = "Meeting",
        *,
        conference_id: str | None = None,
        status: Status = "started",
        room_code: str | None = None,
        creator_id: str = "sandbox",
        schedule_conference_id: str | None = None,
        invited: list[str] | None = None,
    ) -> str:
        """Create a meeting and return its id.

        :param conference_id: None for an id as DingTalk makes them.
        :param status: ``not_started``, ``started`` or ``ended``.
        :param room_code: None for a new one; several meetings can have the same.
        :param creator_id: the unionId of the host.
        :raises ValueError: the id is in use, or the status is none.
        """
        if status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}, not {status!r}.")
        conference_id = conference_id or secrets.token_hex(12)
        if conference_id in self.conferences or conference_id in self._reserved:
            raise ValueError(f"There is a meeting {conference_id!r} already.")
        more = {"creator_id": creator_id, "schedule_conference_id": schedule_conference_id}
        self._add(
            conference_id, title, status, room_code=room_code or _room_code(), invited=invited or [], **more
        )
        return conference_id

    def _add(self, conference_id: str, title: str, status: Status, **more: Any) -> None:
        self.conferences[conference_id] = Conference(conference_id, title, **more)
        if status != "not_started":
            self.start(conference_id)
        if status == "ended":
            self.end(conference_id)

    def find(self, conference_id: str) -> Conference | None:
        """Return a meeting, or None. A reserved one is created when it is first needed."""
        reserved = self._reserved.get(conference_id)
        if reserved and conference_id not in self.conferences:
            self._add(conference_id, reserved.rehearses, reserved.status)
        return self.conferences.get(conference_id)

    def conference(self, conference_id: str) -> Conference:
        """Return a meeting, which goes on changing with the calls.

        :raises KeyError: there is none with this id; the methods below raise it, too.
        """
        self.find(conference_id)
        return self.conferences[conference_id]

    def start(self, conference_id: str) -> Conference:
        """Start a meeting and return it; nothing changes for a running one.

        :raises ValueError: it has ended.
        """
        conference = self.conference(conference_id)
        if conference.status == "ended":
            raise ValueError(f"The meeting {conference_id!r} has ended.")
        if conference.status == "not_started":
            conference.status, conference.start_time = "started", now()
            self._changed("conference_created", conference)
        return conference

    def end(self, conference_id: str) -> Conference:
        """End a meeting and return it."""
        conference = self.conference(conference_id)
        if conference.status != "ended":
            conference.status, conference.end_time = "ended", now()
            conference.start_time = conference.start_time or conference.end_time
            conference.left = dict.fromkeys(conference.participants, conference.end_time) | conference.left
            self._changed("conference_closed", conference)
        return conference

    def close(self, conference_id: str) -> None:
        """End a meeting as its host does; a reserved one is there again for the next call."""
        if conference_id in self._reserved:
            del self.conferences[conference_id]
        else:
            self.end(conference_id)

    def join(self, conference_id: str, user: str) -> bool:
        """Let a user try to join a meeting, and return whether that worked."""
        return self.try_to_join(conference_id, user) is None

    def try_to_join(self, conference_id: str, user: str) -> str | None:
        """Let a user join; return None, or why that is impossible: ``locked``, ``ended``, ``not_started``."""
        conference = self.conference(conference_id)
        reason = conference.refusal(user)
        if reason:
            conference.refused.append(user)
        elif not conference.has(user):
            if conference.left.pop(user, None) is None:
                conference.participants.append(user)
                conference.joined[user] = now()
            self._changed("user_join", conference, user)
        return reason

    def leave(self, conference_id: str, user: str) -> Conference:
        """Let a user leave a meeting and return it; nothing changes for somebody who is not in it."""
        conference = self.conference(conference_id)
        if conference.has(user):
            conference.left[user] = now()
            self._changed("user_leave", conference, user)
        return conference

    # Access tokens, and tickets for event streams

    def issue_token(self, app: App = INTERNAL_APP) -> str:
        """Return an access token: for an internal app the valid one, renewed, else a new one."""
        valid = (token for token in self._grants if self.token_app(token) == app and not app.third_party)
        token = next(valid, None) or secrets.token_hex(16)
        self._grants[token] = app, self.clock() + self.token_lifetime
        return token

    def token_app(self, token: str) -> App | None:
        """Return the app of an access token; None for one that is unknown, expired or revoked."""
        app, expires = self._grants.get(token, (None, 0.0))
        return app if expires > self.clock() else None

    def revoke_tokens(self) -> None:
        """Make every access token issued until now unknown."""
        self._grants.clear()

    def expire_tokens(self) -> None:
        """End the lifetime of every access token issued until now."""
        self._grants = {token: (app, self.clock()) for token, (app, _) in self._grants.items()}

    def issue_stream_ticket(self, app: App) -> str:
        """Return a ticket for one connection to an app's event stream."""
        ticket = str(uuid.uuid4())
        self._tickets[ticket] = app, self.clock() + self.stream_ticket_lifetime
        return ticket

    def take_stream_ticket(self, ticket: str) -> App | None:
        """Return the app of a ticket, once; None for one that is unknown or expired."""
        app, expires = self._tickets.pop(ticket, (None, 0.0))
        return app if expires > self.clock() else None

    # Limits

    def within_quota(self) -> bool:
        """Count a call, and return whether the organisation's quota still allows it."""
        self._used += 1
        return self.quota is None or self._used <= self.quota

    def seconds_to_wait(self, client_id: str, api: str) -> float:
        """Count a call of an app to an API; return 0, or the seconds until the rate limit allows it."""
        if self.calls_per_second is None:
            return 0.0
        recent = self._recent.setdefault((client_id, api), deque(maxlen=self.calls_per_second))
        wait = recent[0] + 1 - self.clock() if len(recent) == recent.maxlen else 0.0
        if wait <= 0:
            recent.append(self.clock())
        return max(wait, 0.0)

    # Faults

    def fail(self, fault: Fault) -> None:
        """Put a fault in force. The first one in force that hits a call applies to it."""
        seconds = FOREVER if fault.duration is None else fault.duration
        self._faults.append([fault, fault.times or FOREVER, self.clock() + seconds])

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    def take_fault(self, call: Call) -> Fault | None:
        """Return the first fault in force that hits a call, and count it."""
        self._faults = [armed for armed in self._faults if armed[1] and armed[2] > self.clock()]
        for armed in self._faults:
            if armed[0].hits(call.name, call.path, call.body):
                armed[1] -= 1
                return cast("Fault", armed[0])
        return None

    def reserved_fault(self, conference_id: str) -> Fault | None:
        """Return what goes wrong with a call for a reserved meeting, and count it."""
        fault = self._reserved[conference_id].fault if conference_id in self._reserved else None
        if fault and fault.times:
            self._failures[conference_id] += 1
            # The call after the failures succeeds, and the count begins anew.
            return fault if self._failures[conference_id] % (fault.times + 1) else None
        return fault

    # Records

    def record(self, call: Call) -> None:
        """Add a call to the records."""
        self._calls.append(call)

    @property
    def calls(self) -> list[Call]:
        """Every call until now, in order of arrival, without those of the control interface."""
        with self.lock:
            return list(self._calls)

    def calls_of(self, *names: str) -> list[Call]:
        """Return the calls with these names (see ``faults.CALLS``)."""
        return [call for call in self._calls if call.name in names]

    def clear(self) -> None:
        """Forget the calls until now."""
        self._calls.clear()
