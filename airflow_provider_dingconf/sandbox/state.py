"""What the sandbox remembers of its callers: access tokens, tickets, faults, and their calls. No I/O."""

import math
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import wraps
from inspect import isfunction
from typing import Any, Final, Literal

from airflow_provider_dingconf.sandbox.faults import RESERVED, SLOW, Call, Fault

HOST: Final = "127.0.0.1"


@dataclass(frozen=True)
class App:
    """An app that can obtain access tokens: an internal one, or a third-party one."""

    client_id: str
    client_secret: str
    third_party: bool = False
    permitted: bool = True  # whether it has the permissions for the conference calls


CORP_ID: Final = "dingsandboxcorp"
INTERNAL_APP: Final = App("dingsandboxapp", "sandbox-app-secret")
THIRD_PARTY_APP: Final = App("suitesandboxapp", "sandbox-suite-secret", third_party=True)
UNPERMITTED_APP: Final = App("dingsandboxunpermitted", "sandbox-unpermitted-secret", permitted=False)
APPS: Final = {app.client_id: app for app in (INTERNAL_APP, THIRD_PARTY_APP, UNPERMITTED_APP)}
Kind = Literal["internal", "third_party", "unified", "static_token", "unpermitted"]
KINDS: Final[Mapping[Kind, tuple[App, Callable[[Any], dict[str, Any]]]]] = {
    "internal": (INTERNAL_APP, lambda _: {}),
    "third_party": (THIRD_PARTY_APP, lambda box: {"corp_id": CORP_ID, "suite_ticket": box.suite_ticket}),
    "unified": (INTERNAL_APP, lambda _: {"corp_id": CORP_ID}),
    "static_token": (App("", ""), lambda box: {"access_token": box.issue_token()}),
    "unpermitted": (UNPERMITTED_APP, lambda _: {}),
}  # the app of each kind of connection, and its ``extra``


class Shared:
    """An object that the server's thread and other threads use: one public method runs at a time."""

    def __init_subclass__(cls) -> None:
        for name, method in list(vars(cls).items()):
            if isfunction(method) and not name.startswith("_"):
                setattr(cls, name, _guarded(method))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return call


@dataclass(eq=False, repr=False)
class State(Shared):
    """The parameters, which :class:`Sandbox` describes, and the state that calls change."""

    port: int = 0
    _: KW_ONLY
    token_lifetime: float = 7200.0  # as with DingTalk
    stream_ticket_lifetime: float = 90.0
    slow: float = 5.0
    redelivery: float = 60.0
    quota: int | None = None
    calls_per_second: int | None = None
    clock: Callable[[], float] = time.monotonic
    ssl_context: ssl.SSLContext | None = None
    on_call: Callable[[Call], object] | None = None

    suite_ticket = "sandbox-suite-ticket"  # the third-party app's only valid one

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._calls: list[Call] = []
        self.tickets: dict[str, tuple[App, float]] = {}  # for event streams: the app, and when it expires
        self._tokens: dict[str, tuple[App, float]] = {}  # the same for access tokens
        self._faults: list[tuple[Fault, float, list[Call]]] = []  # when each ends, and what it has hit
        self._failures: Counter[str] = Counter()
        self._used = 0  # calls that count towards the quota
        self._recent: dict[tuple[str, object], list[float]] = {}  # when each app called each API of late

    @property
    def url(self) -> str:
        """The host of a connection to the sandbox."""
        return f"{'https' if self.ssl_context else 'http'}://{HOST}:{self.port}"

    def issue_token(self, app: App = INTERNAL_APP) -> str:
        """Return an access token: for an internal app the valid one, renewed; otherwise a new one."""
        valid = (token for token in self._tokens if self.token_app(token) == app and not app.third_party)
        token = next(valid, None) or secrets.token_hex(16)
        self._tokens[token] = app, self.clock() + self.token_lifetime
        return token

    def token_app(self, token: str) -> App | None:
        """Return the app of an access token; None for one that is unknown, expired or revoked."""
        app, expires = self._tokens.get(token, (None, 0.0))
        return app if expires > self.clock() else None

    def revoke_tokens(self) -> None:
        """Forget every access token that was issued."""
        self._tokens.clear()

    def expire_tokens(self) -> None:
        """Let every access token that was issued expire."""
        self._tokens = {token: (app, self.clock()) for token, (app, _) in self._tokens.items()}

    def fail(self, fault: Fault) -> None:
        """Put a fault in force. The first one in force that hits a call applies to it."""
        seconds = math.inf if fault.duration is None else fault.duration
        self._faults.append((fault, self.clock() + seconds, []))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    def take_fault(self, call: Call) -> Fault | None:
        """Return the first fault in force that hits a call, and count it."""
        for fault, end, hit in self._faults:
            if len(hit) != fault.times and end > self.clock() and fault.hits(call):
                hit.append(call)
                return fault
        return None

    def reserved_fault(self, conference_id: str) -> Fault | None:
        """Return what goes wrong with a call for a reserved meeting, and count it."""
        if conference_id == SLOW:
            return Fault(delay=self.slow)
        fault = RESERVED[conference_id].fault if conference_id in RESERVED else None
        self._failures[conference_id] += 1
        # The call after the failures succeeds, and the count starts again.
        succeeds = fault and fault.times and self._failures[conference_id] % (fault.times + 1) == 0
        return None if succeeds else fault

    @property
    def calls(self) -> list[Call]:
        """Every call until now, in order of arrival, without those of the control interface."""
        return list(self._calls)

    def calls_of(self, *names: str) -> list[Call]:
        """Return the calls with these names (see ``faults.CallName``)."""
        return [call for call in self._calls if call.name in names]

    def clear(self) -> None:
        """Forget the calls until now."""
        self._calls.clear()
