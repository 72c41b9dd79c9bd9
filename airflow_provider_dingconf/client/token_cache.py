"""What calls and processes share: access tokens, address bans, suite tickets, and the ids of seen events.

An access token belongs to credentials and a host, not to a hook. The threads and coroutines of a process
share it in memory. The processes of a host, such as Airflow's tasks, share it through a file that is
encrypted with a key derived from the client secret. While one of them fetches a token, the others wait.

A process counts seconds on its monotonic clock, and takes the age of a shared file from the file system. So a
clock that is wrong, or that somebody sets, has no effect.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import threading
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from filelock import Timeout

from airflow_provider_dingconf.client.shared_files import MAX_FILE_BYTES, SharedFile, default_directory
from airflow_provider_dingconf.dingtalk.tokens import RENEW_AFTER, Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.tokens import App

LOCK_SECONDS = 15.0
"""How long to wait at most for another process that fetches a token, before fetching one as well."""

LOCK_POLL_SECONDS = 0.05
"""Seconds between two attempts to get the lock: short, but fifty waiting processes are no load."""

_SALT_BYTES = 16
_EVENT_BYTES = 16

_SWEPT = b"\0" * _EVENT_BYTES  # in place of an event's key: no sweep is due for the events before it

MAX_SEEN = MAX_FILE_BYTES // _EVENT_BYTES
"""How many events of an app are remembered; older ones are forgotten."""

T = TypeVar("T")


class _SharedValue:
    """A value in a JSON file that other processes replace, too; without a file, nothing is shared.

    :param secret: encrypts the file, unless it is None.
    :param purpose: what an encrypted file is for. A file for another purpose cannot be decrypted.
    """

    def __init__(self, file: SharedFile | None, secret: str | None = None, purpose: str = "") -> None:
        self.file, self._secret = file, secret
        self._purpose = f"airflow-provider-dingconf {purpose}".encode()
        self._version: object = None

    def look(self, take: Callable[[Any], None]) -> None:
        """Pass on the value if the file has changed since this process last wrote it or looked.

        None means that the file was deleted. For an unreadable file, nothing is passed on: it may be readable
        later.
        """
        version = self.file.version() if self.file else None
        if version != self._version:
            value = self._read()
            if value is not None or version is None:
                take(value)
                self._version = version  # not before, or another thread would miss the value

    def age(self) -> float | None:
        """Return the seconds since the file was written; None if they are not known."""
        return self.file.age() if self.file else None

    def _read(self) -> Any:
        """Return the value; None if it is missing, damaged or not decrypted by the secret."""
        content = (self.file.read() if self.file else None) or b""
        try:
            if self._secret is not None:
                content = self._cipher(content[:_SALT_BYTES]).decrypt(content[_SALT_BYTES:])
            return json.loads(content)
        except (InvalidToken, ValueError, RecursionError):
            return None

    def write(self, value: object) -> None:
        """Replace the value, if there is a file."""
        if self.file:
            content = json.dumps(value).encode()
            if self._secret is not None:
                salt = os.urandom(_SALT_BYTES)
                content = salt + self._cipher(salt).encrypt(content)
            self.file.write(content)
            self._version = self.file.version()

    def _cipher(self, salt: bytes) -> Fernet:
        kdf = HKDF(SHA256(), length=32, salt=salt, info=self._purpose)
        return Fernet(base64.urlsafe_b64encode(kdf.derive((self._secret or "").encode())))


class TokenCache:
    """One access token, in memory and, if ``file`` is given, on disk.

    :param secret: the client secret, from which the file's key is derived.
    """

    def __init__(self, secret: str, file: SharedFile | None = None) -> None:
        self._shared = _SharedValue(file, secret, "access token")
        self._token: Token | None = None
        self._renew_at = 0.0
        self._thread_lock = threading.Lock()

    def get(self, refused: Token | None, now: float) -> Token | None:
        """Return a token that need not be renewed yet, other than the one that DingTalk refused.

        :param now: the time on the monotonic clock, here and below.
        """
        usable = self._usable(refused, now)
        if usable is None:
            self._shared.look(partial(self._take, now))
            usable = self._usable(refused, now)
        return usable

    def put(self, token: Token, now: float) -> None:
        """Keep a token that was just fetched, for this process and the others."""
        self._keep(token, now)
        self._shared.write({"value": token.value, "fetched_at": token.fetched_at, "lifetime": token.lifetime})

    @asynccontextmanager
    async def fetching(self, seconds: float) -> AsyncIterator[None]:
        """Hold the lock to fetch a token, which one coroutine of all threads and processes has at a time.

        Continue without the lock if its holder does not finish: the holder may be stopped, or the lock may be
        inherited by a fork.

        :param seconds: how long to wait for the lock; :data:`LOCK_SECONDS` at most.
        """
        give_up = time.monotonic() + min(seconds, LOCK_SECONDS)
        with ExitStack() as held:
            while not self._try_lock(held) and time.monotonic() < give_up:
                await asyncio.sleep(LOCK_POLL_SECONDS)
            yield

    def _usable(self, refused: Token | None, now: float) -> Token | None:
        token = self._token
        return token if token != refused and now < self._renew_at else None

    def _keep(self, token: Token, fetched: float) -> None:
        self._token, self._renew_at = token, fetched + (token.lifetime or 0.0) * RENEW_AFTER

    def _take(self, now: float, content: Any) -> None:
        age = self._shared.age()
        with suppress(TypeError):
            self._keep(Token(**content), now - age if age is not None else -math.inf)

    def _try_lock(self, held: ExitStack) -> bool:
        """Return whether the lock could be acquired; ``held`` releases it."""
        if not self._thread_lock.acquire(blocking=False):
            return False
        with ExitStack() as locks:
            locks.callback(self._thread_lock.release)
            with suppress(Timeout):
                lock = self._shared.file.lock() if self._shared.file else None
                if lock is not None:
                    locks.callback(lock.release)
                held.enter_context(locks.pop_all())
                return True
        return False


class AddressBan:
    """The address ban of one host, if there is one: in memory for all connections, and on disk.

    Deleting the file ends the ban for all processes that read or wrote it.

    :param host: the URL of the host.
    :param file: the connection's file; another connection can have another one.
    """

    def __init__(self, host: str, file: SharedFile | None = None) -> None:
        self.file, self._host = file, host
        self._shared = _SharedValue(file)

    def seconds_left(self, now: float) -> float:
        """Return the remaining seconds of the ban; 0 for no ban."""
        self._shared.look(partial(self._take, now))
        return max(0.0, _bans.get(self._host, now) - now)

    def put(self, now: float, seconds: float) -> None:
        """Remember a ban, for this process and the others."""
        _bans[self._host] = now + seconds
        self._shared.write({"seconds": seconds})

    def _take(self, now: float, content: Any) -> None:
        if content is None:
            _bans.pop(self._host, None)
        elif (age := self._shared.age()) is not None:
            with suppress(TypeError, KeyError, ValueError, OverflowError):
                until = now - age + float(content["seconds"])
                _bans[self._host] = max(_bans.get(self._host, now), until)


class SuiteTicket:
    """The suite ticket that DingTalk last pushed to a third-party app."""

    def __init__(self, secret: str, file: SharedFile | None = None) -> None:
        self._shared = _SharedValue(file, secret, "suite ticket")
        self._known = (0.0, "")

    @property
    def pushed(self) -> str | None:
        """The ticket; None if DingTalk has not pushed one yet."""
        return self._newest()[1] or None

    def put(self, ticket: str, made_at: float | None = None) -> None:
        """Keep a ticket, for this process and the others, unless a newer one is known.

        :param made_at: when DingTalk made it, in seconds since the epoch; None counts as the newest.
        """
        newest, _ = self._newest()
        if made_at is None or made_at >= newest:
            self._known = (newest if made_at is None else made_at, ticket)
            self._shared.write({"ticket": ticket, "at": self._known[0]})

    def _newest(self) -> tuple[float, str]:
        self._shared.look(self._take)
        return self._known

    def _take(self, content: Any) -> None:
        with suppress(ValueError, TypeError, KeyError):
            made_at, ticket = float(content["at"]), str(content["ticket"])
            if made_at >= self._known[0]:
                self._known = made_at, ticket


class SeenEvents:
    """The events of an app that started something: the last :data:`MAX_SEEN`, in memory and on disk."""

    def __init__(self, file: SharedFile | None = None) -> None:
        self._file = file
        self._seen: dict[bytes, None] = {}

    def load(self) -> None:
        """Read the events that other processes have seen."""
        self._remember(self._shared())

    def __contains__(self, event_id: str) -> bool:
        """Return whether an event has started something."""
        return _event_key(event_id) in self._seen

    def add(self, event_ids: Iterable[str], *, swept: bool = False) -> None:
        """Remember events that started something; in this process only, until :meth:`save`.

        :param swept: whether no sweep is due for these events and the earlier ones.
        """
        self._remember(map(_event_key, event_ids))
        if swept:
            self._seen.pop(_SWEPT, None)
            self._remember([_SWEPT])

    @property
    def sweep_due(self) -> bool:
        """Whether a sweep was due when an event was last added."""
        return next(reversed(self._seen), _SWEPT) != _SWEPT

    def save(self) -> None:
        """Write the seen events, together with those of other processes."""
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


_bans: dict[str, float] = {}
"""When the ban of each host ends, on the monotonic clock."""

_kept: dict[object, Any] = {}


def token_cache_of(settings: Settings) -> TokenCache:
    """Return the token cache of the connection's credentials; equal credentials share one."""
    app = cast("App", settings.app)  # there is one, unless the token is static
    name = _digest(settings.base_url, app.kind, app.client_id, app.corp_id, app.client_secret)
    return _once(settings, f"{name}.token", lambda file: TokenCache(app.client_secret, file))


def address_ban_of(settings: Settings) -> AddressBan:
    """Return the ban of the connection's host, if there is one."""
    name = f"{sha256(settings.base_url.encode()).hexdigest()}.ban"
    return _once(settings, name, lambda file: AddressBan(settings.base_url, file))


def suite_ticket_of(settings: Settings) -> SuiteTicket:
    """Return the suite ticket of the connection's app, whatever its organisation."""
    secret = cast("App", settings.app).client_secret
    return _once(settings, f"{_app_name(settings)}.ticket", lambda file: SuiteTicket(secret, file))


def seen_events_of(settings: Settings) -> SeenEvents:
    """Return the events of the connection's app that have started something."""
    return _once(settings, f"{_app_name(settings)}.events", SeenEvents)


def _app_name(settings: Settings) -> str:
    app = cast("App", settings.app)
    return _digest(settings.base_url, app.client_id, app.client_secret)


def _digest(*parts: str | None) -> str:
    """Return a file name, which cannot be guessed if the client secret is among the parts."""
    return sha256(json.dumps(parts).encode()).hexdigest()


def _once(settings: Settings, name: str, make: Callable[[SharedFile | None], T]) -> T:
    """Return the one object for a name; without a file, if the connection switches the sharing off."""
    where = settings.token_cache
    if (where, name) not in _kept:
        directory = default_directory() if where is True else Path(where or "")
        file = SharedFile(directory / name, group=where is not True) if where else None
        _kept.setdefault((where, name), make(file))
    return cast("T", _kept[where, name])


def forget() -> None:
    """Forget what this process has in memory."""
    _kept.clear()
    _bans.clear()
    SharedFile.warned.clear()
