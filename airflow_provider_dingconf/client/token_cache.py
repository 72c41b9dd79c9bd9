"""What is kept between calls and processes: access tokens, address bans, suite tickets, seen events.

An access token belongs to credentials and a host, not to a hook. The threads and coroutines of a process
share it in memory. The processes of a host, such as Airflow's tasks, share it through a file that is
encrypted with a key derived from the client secret. While one of them fetches a token, the others wait.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from contextlib import asynccontextmanager
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from filelock import BaseFileLock, Timeout

from airflow_provider_dingconf.client.shared_files import MAX_FILE_BYTES, SharedFile, default_directory
from airflow_provider_dingconf.dingtalk.tokens import RENEW_AFTER, Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.tokens import App

LOCK_SECONDS = 15.0
"""How long to wait at most for another process that fetches a token, before fetching one, too."""

LOCK_POLLS = (0.01, 0.02, 0.05, 0.1)
"""Seconds between attempts to get the lock; the last repeats. Fifty waiting processes are then no load."""

CLOCK_SKEW_SECONDS = 600.0
"""For so long after a token was written, a process uses it though it looks expired by its own clock."""

MAX_SEEN = 16 * 1024
"""How many events are remembered, those of the app that came last."""

_SALT_BYTES = 16
_EVENT_BYTES = 16
_SWEPT = b"\0" * _EVENT_BYTES
"""In place of an event's key: no sweep is due for the events before it."""

T = TypeVar("T")


class _EncryptedFile:
    """A shared file of JSON that cannot be read without the client secret.

    :param purpose: what the file is for; the content of another one is refused.
    """

    def __init__(self, file: SharedFile | None, secret: str, purpose: str) -> None:
        self.file = file
        self._secret = secret.encode()
        self._purpose = f"airflow-provider-dingconf {purpose}".encode()

    def read(self) -> Any:
        """Return the content; None if it is missing, damaged or not decrypted by the secret."""
        content = (self.file.read() if self.file else None) or b""
        try:
            return json.loads(self._cipher(content[:_SALT_BYTES]).decrypt(content[_SALT_BYTES:]))
        except (InvalidToken, ValueError):
            return None

    def write(self, content: object) -> None:
        """Replace the content, if there is a file."""
        if self.file:
            salt = os.urandom(_SALT_BYTES)
            self.file.write(salt + self._cipher(salt).encrypt(json.dumps(content).encode()))

    def _cipher(self, salt: bytes) -> Fernet:
        kdf = HKDF(SHA256(), length=32, salt=salt, info=self._purpose)
        return Fernet(base64.urlsafe_b64encode(kdf.derive(self._secret)))


class TokenCache:
    """One access token, in memory and, if ``file`` is given, on disk.

    :param secret: the client secret, from which the file's key is derived.
    :param file: the file; None to share nothing between processes.
    :param polls: seconds between attempts to get the lock; the last repeats.
    """

    def __init__(
        self, secret: str, file: SharedFile | None = None, polls: Sequence[float] = LOCK_POLLS
    ) -> None:
        self._file = _EncryptedFile(file, secret, "access token")
        self._polls = polls
        self._token: Token | None = None
        self._trusted_until = 0.0
        self._thread_lock = threading.Lock()
        self._file_lock: BaseFileLock | None = None

    def get(self, refused: Token | None, now: float) -> Token | None:
        """Return a token that has not expired and, if DingTalk refused one, is newer than that one.

        :param refused: the token that DingTalk refused.
        :param now: seconds since the epoch.
        """
        if self._is_usable(refused, now):
            return self._token
        if self._file.file:
            self._token, self._trusted_until = self._read(), 0.0
            if self._token and self._token.stale(now):
                self._trust_if_just_written(self._token, self._file.file.age(), now)
        return self._token if self._is_usable(refused, now) else None

    def put(self, token: Token) -> None:
        """Keep a token, for this process and the others."""
        self._token, self._trusted_until = token, 0.0
        self._file.write({"value": token.value, "fetched_at": token.fetched_at, "lifetime": token.lifetime})

    @asynccontextmanager
    async def fetching(self, seconds: float) -> AsyncIterator[None]:
        """Hold the right to fetch a token: one coroutine in all threads and processes has it at a time.

        Go on without it if its holder does not finish: it may be stopped, or inherited by a fork.

        :param seconds: how long to wait for the holder; :data:`LOCK_SECONDS` at most.
        """
        give_up = time.monotonic() + min(seconds, LOCK_SECONDS)
        polls = chain(self._polls, repeat(self._polls[-1]))
        while not (held := self._try_lock()) and time.monotonic() < give_up:
            await asyncio.sleep(next(polls))
        try:
            yield
        finally:
            if held:
                self._unlock()

    def _read(self) -> Token | None:
        try:
            return Token(**self._file.read())
        except TypeError:
            return None

    def _is_usable(self, refused: Token | None, now: float) -> bool:
        token = self._token
        trusted = 0 < self._trusted_until - now <= CLOCK_SKEW_SECONDS
        return (
            token is not None
            and (trusted or not token.stale(now))
            and (refused is None or token.newer(refused, now))
        )

    def _trust_if_just_written(self, token: Token, age: float | None, now: float) -> None:
        """Use a token that was just written for a while: the writer's clock may differ from this one.

        Otherwise two hosts with different clocks, or processes, would replace each other's token for each
        call. If this host's clock was set, the file's age has changed as well, and the token is replaced.
        """
        longest = min(CLOCK_SKEW_SECONDS, (token.lifetime or 0.0) * RENEW_AFTER)
        if age is not None and age >= 0:
            self._trusted_until = now + longest - age

    def _try_lock(self) -> bool:
        if not self._thread_lock.acquire(blocking=False):
            return False
        try:
            self._file_lock = self._file.file.lock() if self._file.file else None
        except BaseException as error:
            self._thread_lock.release()
            if isinstance(error, Timeout):
                return False
            raise
        return True

    def _unlock(self) -> None:
        lock, self._file_lock = self._file_lock, None
        try:
            if lock is not None:
                lock.release()
        finally:
            self._thread_lock.release()


class SuiteTicket:
    """The suite ticket that DingTalk pushed last to a third-party app.

    :param secret: the client secret, from which the file's key is derived.
    :param file: the file; None to share nothing between processes.
    :param clock: returns the seconds since the epoch.
    """

    def __init__(
        self, secret: str, file: SharedFile | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._file = _EncryptedFile(file, secret, "suite ticket")
        self._clock = clock
        self._known: tuple[float, str | None] = (0.0, None)

    @property
    def pushed(self) -> str | None:
        """The ticket; None if DingTalk has not pushed one yet."""
        return self._latest()[1]

    def put(self, ticket: str, at: float) -> None:
        """Keep a ticket, for this process and the others, unless a newer one is known.

        :param at: when DingTalk made it, in seconds since the epoch; at most now.
        """
        at = min(at, self._clock())
        if at < self._latest()[0]:
            return
        self._known = (at, ticket)
        self._file.write({"ticket": ticket, "at": at})

    def _latest(self) -> tuple[float, str | None]:
        """Return the newest ticket and its time; one from the future counts as the oldest."""
        now = self._clock()
        known = [(at if at <= now else 0.0, ticket) for at, ticket in (self._known, self._shared())]
        return max(known, key=lambda one: (one[0], one[1] is not None))

    def _shared(self) -> tuple[float, str | None]:
        try:
            content = self._file.read()
            return float(content["at"]), str(content["ticket"])
        except (ValueError, TypeError, KeyError):
            return 0.0, None


class SeenEvents:
    """Which events of an app started something: the last :data:`MAX_SEEN`, in memory and on disk.

    :param file: the file; None to remember nothing beyond this process.
    """

    def __init__(self, file: SharedFile | None = None) -> None:
        self._file = file
        self._seen: dict[bytes, None] = {}

    def load(self) -> None:
        """Read what this process and others have seen before."""
        self._remember(self._shared())

    def __contains__(self, event_id: str) -> bool:
        """Return whether an event has started something."""
        return _event_key(event_id) in self._seen

    def add(self, event_ids: Iterable[str], *, swept: bool = False) -> None:
        """Remember events that started something, in this process; :meth:`save` writes them to the file.

        :param swept: whether no sweep is due for these events and those before.
        """
        self._remember(map(_event_key, event_ids))
        if swept:
            self._seen.pop(_SWEPT, None)
            self._remember([_SWEPT])

    @property
    def sweep_due(self) -> bool:
        """Whether sweeps were ahead when an event was last added."""
        return next(reversed(self._seen), _SWEPT) != _SWEPT

    def save(self) -> None:
        """Write what was seen, with what other processes wrote."""
        if self._file:
            own = dict.fromkeys(list(self._seen))
            known = [key for key in self._shared() if key not in own] + list(own)
            self._file.write(b"".join(known[-MAX_SEEN:]))

    def _remember(self, keys: Iterable[bytes]) -> None:
        self._seen.update(dict.fromkeys(keys))
        for key in list(self._seen)[:-MAX_SEEN]:
            del self._seen[key]

    def _shared(self) -> list[bytes]:
        content = (self._file.read() if self._file else None) or b""
        whole = len(content) - len(content) % _EVENT_BYTES
        return [content[at : at + _EVENT_BYTES] for at in range(0, whole, _EVENT_BYTES)]


def _event_key(event_id: str) -> bytes:
    return sha256(event_id.encode()).digest()[:_EVENT_BYTES]


class AddressBan:
    """The address ban of one host, if there is one: in memory, for all connections, and on disk.

    Deleting the file ends the ban for all processes that read or wrote it.

    :param host: its URL.
    :param file: the file of the connection that asks; None to share nothing between processes.
    """

    def __init__(self, host: str, file: SharedFile | None = None) -> None:
        self.file = file
        self._host = host
        self._content: bytes | None = None

    def seconds_left(self, now: float) -> float:
        """Return how long DingTalk must not be called; 0 if it may.

        :param now: seconds since the epoch.
        """
        if self.file and (self._content is not None or os.path.lexists(self.file.path)):
            self._read(self.file, now)
        return self._known_seconds_left(now)

    def put(self, now: float, seconds: float) -> None:
        """Remember a ban, for this process and the others."""
        _bans[self._host] = (now, now + seconds)
        if self.file:
            self.file.write(json.dumps(_bans[self._host]).encode())

    def _read(self, file: SharedFile, now: float) -> None:
        content = file.read()
        if content is None and self._content is not None and not os.path.lexists(file.path):
            _bans.pop(self._host, None)
            self._content = None
        if content is None or content == self._content:
            return
        try:
            began, until = map(float, json.loads(content))
        except (ValueError, TypeError, OverflowError, RecursionError):
            return
        if (began, until) != _bans.get(self._host):  # another process wrote it, whose clock may differ
            age = file.age()
            left = until - began - (now - began if age is None else age)
            if self._known_seconds_left(now) < left <= until - began:
                _bans[self._host] = (now, now + left)
        self._content = content

    def _known_seconds_left(self, now: float) -> float:
        began, until = _bans.get(self._host, (0.0, 0.0))
        return until - now if began <= now < until else 0.0  # one from the future: the clock was set back


_bans: dict[str, tuple[float, float]] = {}
_kept: dict[object, Any] = {}


def token_cache_of(settings: Settings) -> TokenCache:
    """Return the cache of the connection's credentials: the same for all who ask with the same ones."""
    app = cast("App", settings.app)  # with a static token, nobody asks
    # The client secret makes the file's name one that cannot be guessed.
    name = _digest(settings.base_url, app.kind, app.client_id, app.corp_id, app.client_secret)
    file = shared_file(settings, f"{name}.token")
    return _once(settings, name, lambda: TokenCache(app.client_secret, file))


def address_ban_of(settings: Settings) -> AddressBan:
    """Return the ban of the connection's host, if there is one."""
    name = f"{sha256(settings.base_url.encode()).hexdigest()}.ban"
    return _once(settings, name, lambda: AddressBan(settings.base_url, shared_file(settings, name)))


def suite_ticket_of(settings: Settings) -> SuiteTicket:
    """Return the suite ticket of the connection's app, whatever its organisation."""
    app, name = cast("App", settings.app), f"{_app_name(settings)}.ticket"
    return _once(settings, name, lambda: SuiteTicket(app.client_secret, shared_file(settings, name)))


def seen_events_of(settings: Settings) -> SeenEvents:
    """Return which events of the connection's app have started something."""
    name = f"{_app_name(settings)}.events"
    return _once(settings, name, lambda: SeenEvents(shared_file(settings, name, MAX_SEEN * _EVENT_BYTES)))


def _app_name(settings: Settings) -> str:
    """Return a name for the connection's app that cannot be guessed without its secret."""
    app = cast("App", settings.app)
    return _digest(settings.base_url, app.client_id, app.client_secret)


def _digest(*parts: str | None) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()


def _once(settings: Settings, name: str, make: Callable[[], T]) -> T:
    key = (settings.token_cache, name)
    if key not in _kept:
        _kept.setdefault(key, make())
    return cast("T", _kept[key])


def shared_file(settings: Settings, name: str, max_bytes: int = MAX_FILE_BYTES) -> SharedFile | None:
    """Return a file that the processes of this host share; None if the connection switches sharing off.

    :param settings: what the connection says.
    :param name: of the file.
    :param max_bytes: how much of the file is read.
    """
    if settings.token_cache is False:
        return None
    if settings.token_cache is True:
        return SharedFile(default_directory() / name, max_bytes)
    return SharedFile(Path(settings.token_cache) / name, max_bytes, group=True)


def forget() -> None:
    """Forget what this process has in memory."""
    _kept.clear()
    _bans.clear()
    SharedFile.warned.clear()
