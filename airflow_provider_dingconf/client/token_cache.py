"""Where access tokens, and what is known of an address ban, are kept between calls and between processes.

A token belongs to credentials and a host, not to a hook. The threads and coroutines of a process share it
in memory; the processes of a host, such as Airflow's tasks, share it through a file that only its owner can
read, and that only who knows the client secret can decrypt. While one of them buys a token, the others wait.
A suite ticket that DingTalk pushed is kept in the same way, and so are, as digests, the ids of events.

The files are a convenience: where they cannot be used, for whatever reason, that costs the sharing and one
warning a directory, never the call.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import tempfile
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from filelock import BaseFileLock, FileLock, Timeout

from airflow_provider_dingconf.dingtalk.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.tokens import App

LOCK_SECONDS = 15.0
"""How long to wait for whoever is buying a token, before buying one all the same."""

MAX_SEEN = 16 * 1024
"""How many events are remembered, those of the app that came last."""

_MAX_FILE_BYTES = 64 * 1024
_SALT_BYTES = 16
_EVENT_BYTES = 16
_CALM = b"\0" * _EVENT_BYTES
"""Stands for an event's key: nothing is left to be done about those before it."""

log = logging.getLogger(__name__)


class FileRefusedError(OSError):
    """Raised when a file or directory is not its user's own, or open to others."""


T = TypeVar("T")


def default_directory() -> Path:
    """Return the directory of this user's shared files: local to the host, as the sharing is."""
    return Path(tempfile.gettempdir()) / f"airflow-provider-dingconf-{os.geteuid()}"


class SharedFile:
    """A small file that the processes of one user on one host share.

    :param path: where it is; its directory is made when it is first written.
    :param max_bytes: how much of it is read.
    """

    _warned: ClassVar[set[Path]] = set()
    """The directories that cost a warning already."""

    def __init__(self, path: Path, max_bytes: int = _MAX_FILE_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def read(self) -> bytes | None:
        """Return the content; None where there is no file that can be trusted."""
        return self._attempt(self._read)

    def write(self, content: bytes) -> None:
        """Replace the content in one step: whoever reads, reads all of the old or all of the new."""
        self._attempt(lambda: self._write(content))

    def remove(self) -> None:
        """Remove it, if it is there."""
        self._attempt(lambda: self.path.unlink(missing_ok=True))

    def lock(self) -> BaseFileLock | None:
        """Return the lock of the file, taken; None where it cannot be locked.

        :raises Timeout: another process has it.
        """
        return self._attempt(self._lock)

    def _attempt(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            if self.path.parent not in self._warned:
                self._warned.add(self.path.parent)
                log.warning(
                    "DingTalk access tokens and events are not shared between processes: %s: %s; "
                    "set token_cache on the connection to another directory, or to false",
                    self.path.parent,
                    getattr(error, "strerror", None) or error,
                )
            return None

    def _read(self) -> bytes | None:
        try:
            _check_owner(self.path.parent.lstat(), stat.S_ISDIR)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:  # noqa: PTH123
            _check_owner(os.fstat(descriptor), stat.S_ISREG)
            return file.read(self.max_bytes)

    def _write(self, content: bytes) -> None:
        self._make_directory()
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".")  # its mode is 0600
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123
                file.write(content)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _lock(self) -> BaseFileLock:
        self._make_directory()
        lock = FileLock(self.path.with_suffix(".lock"), mode=0o600)
        lock.acquire(blocking=False)
        return lock

    def _make_directory(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(self.path.parent.lstat(), stat.S_ISDIR)


def _check_owner(found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise FileRefusedError("it is not this user's own, or others may enter it")


class Shelf:
    """The place of one token, in memory and, where ``file`` is given, on disk.

    :param secret: the client secret, from which the file's key is derived.
    :param file: the file; None for no sharing between processes.
    """

    def __init__(self, secret: str, file: SharedFile | None = None) -> None:
        self._secret = secret.encode()
        self._file = file
        self._token: Token | None = None
        self._thread_lock = threading.Lock()
        self._file_lock: BaseFileLock | None = None

    def token(self, refused: Token | None, now: float) -> Token | None:
        """Return a token to use: one that is not stale and, where DingTalk refused one, is newer than that.

        :param refused: the refused one.
        :param now: seconds since the epoch.
        """

        def usable(token: Token | None) -> bool:
            return (
                token is not None and not token.stale(now) and (refused is None or token.newer(refused, now))
            )

        if not usable(self._token) and self._file:
            self._token = self._decrypted(self._file.read())
        return self._token if usable(self._token) else None

    def put(self, token: Token) -> None:
        """Keep a token, for this process and the others."""
        self._token = token
        if self._file:
            self._file.write(self._encrypted(token))

    def try_lock(self) -> bool:
        """Take the right to buy a token, if nobody else has it; :meth:`unlock` gives it back."""
        if not self._thread_lock.acquire(blocking=False):
            return False
        try:
            self._file_lock = self._file.lock() if self._file else None
        except Timeout:
            self._thread_lock.release()
            return False
        except BaseException:
            self._thread_lock.release()
            raise
        return True

    def unlock(self) -> None:
        """Give back the right to buy a token."""
        lock, self._file_lock = self._file_lock, None
        try:
            if lock is not None:
                lock.release()
        finally:
            self._thread_lock.release()

    def _encrypted(self, token: Token) -> bytes:
        content = {"value": token.value, "fetched_at": token.fetched_at, "lifetime": token.lifetime}
        return _sealed(content, self._secret, _TOKEN)

    def _decrypted(self, content: bytes | None) -> Token | None:
        """Return the token of a file; None for one that is missing, damaged, or of another secret."""
        try:
            return Token(**_unsealed(content, self._secret, _TOKEN))
        except (ValueError, TypeError):
            return None


class SuiteTicket:
    """The suite ticket that DingTalk pushed last to a third-party app.

    :param secret: the client secret, from which the file's key is derived.
    :param file: the file; None for no sharing between processes.
    """

    def __init__(self, secret: str, file: SharedFile | None = None) -> None:
        self._secret = secret.encode()
        self._file = file
        self._known: tuple[float, str | None] = (0.0, None)

    @property
    def pushed(self) -> str | None:
        """The ticket; None where none was pushed yet."""
        return self._latest()[1]

    def put(self, ticket: str, at: float) -> None:
        """Keep a ticket, for this process and the others, unless a newer one is known.

        :param at: when DingTalk made it, in seconds since the epoch; at most now.
        """
        at = min(at, time.time())
        if at < self._latest()[0]:
            return
        self._known = (at, ticket)
        if self._file:
            self._file.write(_sealed({"ticket": ticket, "at": at}, self._secret, _TICKET))

    def _latest(self) -> tuple[float, str | None]:
        """Return the newest ticket, and from when it is; one from the future is older than any other."""
        now = time.time()
        known = [(at if at <= now else 0.0, ticket) for at, ticket in (self._known, self._shared())]
        return max(known, key=lambda one: (one[0], one[1] is not None))

    def _shared(self) -> tuple[float, str | None]:
        try:
            content = _unsealed(self._file.read() if self._file else None, self._secret, _TICKET)
            return float(content["at"]), str(content["ticket"])
        except (ValueError, TypeError, KeyError):
            return 0.0, None


class SeenEvents:
    """Which events of an app started something, the last :data:`MAX_SEEN`, in memory and on disk.

    :param file: the file; None for no memory beyond this process.
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

    def add(self, event_ids: Iterable[str]) -> None:
        """Remember events that started something, in this process; :meth:`save` makes it last."""
        self._remember(map(_event_key, event_ids))

    @property
    def sweep_due(self) -> bool:
        """Whether events have started something since it was last said that all is calm."""
        return next(reversed(self._seen), _CALM) != _CALM

    def note_sweep(self) -> None:
        """Say that nothing is left to be done about the events so far."""
        self._seen.pop(_CALM, None)
        self._remember([_CALM])

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


_TOKEN = b"airflow-provider-dingconf access token"
_TICKET = b"airflow-provider-dingconf suite ticket"


def _sealed(content: object, secret: bytes, purpose: bytes) -> bytes:
    """Return a content that only who knows the secret can read."""
    salt = os.urandom(_SALT_BYTES)
    return salt + _cipher(secret, salt, purpose).encrypt(json.dumps(content).encode())


def _unsealed(sealed: bytes | None, secret: bytes, purpose: bytes) -> Any:
    """Return the content again.

    :raises ValueError: it is missing, damaged, of another secret or for another purpose.
    """
    if not sealed:
        raise ValueError("there is nothing")
    salt, rest = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
    try:
        return json.loads(_cipher(secret, salt, purpose).decrypt(rest))
    except InvalidToken:
        raise ValueError("it is of another secret") from None


def _cipher(secret: bytes, salt: bytes, purpose: bytes) -> Fernet:
    kdf = HKDF(SHA256(), length=32, salt=salt, info=purpose)
    return Fernet(base64.urlsafe_b64encode(kdf.derive(secret)))


class Ban:
    """What is known of an address ban of one host: in memory, for all connections, and on disk.

    :param host: its URL.
    :param file: the file of the connection that asks; None for no sharing between processes.
    """

    def __init__(self, host: str, file: SharedFile | None = None) -> None:
        self._host = host
        self._file = file

    def seconds_left(self, now: float) -> float:
        """Return how long DingTalk must not be called; 0 where it may.

        :param now: seconds since the epoch.
        """
        bans = [_bans.get(self._host, _NO_BAN), self._shared()]
        lasting = [ban for ban in bans if ban[0] <= now < ban[1]]  # a ban of the future: the clock went back
        if not lasting:
            return 0.0
        known = _bans[self._host] = max(lasting, key=lambda ban: ban[1])
        return known[1] - now

    def put(self, now: float, seconds: float) -> None:
        """Remember a ban, for this process and the others."""
        known = _bans[self._host] = (now, now + seconds)
        if self._file:
            self._file.write(json.dumps(known).encode())

    def _shared(self) -> tuple[float, float]:
        content = self._file.read() if self._file else None
        try:
            began, until = json.loads(content or b"")
            return float(began), float(until)
        except (ValueError, TypeError, OverflowError, RecursionError):
            return _NO_BAN


_NO_BAN = (0.0, 0.0)

_shelves: dict[object, Shelf] = {}
_bans: dict[str, tuple[float, float]] = {}
_suite_tickets: dict[object, SuiteTicket] = {}
_seen_events: dict[object, SeenEvents] = {}


def shelf_of(settings: Settings) -> Shelf:
    """Return the shelf of the connection's credentials: the same for all that ask with the same ones."""
    app = cast("App", settings.app)  # there is no static token, else nobody would ask
    # The client secret makes the file's name one that cannot be guessed.
    parts = (settings.base_url, app.kind, app.client_id, app.corp_id, app.client_secret)
    name = sha256(json.dumps(parts).encode()).hexdigest()
    key = (settings.token_cache, name)
    if key not in _shelves:
        _shelves.setdefault(key, Shelf(app.client_secret, shared_file(settings, f"{name}.token")))
    return _shelves[key]


def ban_of(settings: Settings) -> Ban:
    """Return what is known of a ban of the connection's host."""
    name = sha256(settings.base_url.encode()).hexdigest()
    return Ban(settings.base_url, shared_file(settings, f"{name}.ban"))


def suite_ticket_of(settings: Settings) -> SuiteTicket:
    """Return what is known of the suite ticket of the connection's app, whatever its organisation."""
    app, name = cast("App", settings.app), _app_name(settings)
    key = (settings.token_cache, name)
    if key not in _suite_tickets:
        kept = SuiteTicket(app.client_secret, shared_file(settings, f"{name}.ticket"))
        _suite_tickets.setdefault(key, kept)
    return _suite_tickets[key]


def seen_events_of(settings: Settings) -> SeenEvents:
    """Return which events of the connection's app have started something."""
    name = _app_name(settings)
    key = (settings.token_cache, name)
    if key not in _seen_events:
        kept = SeenEvents(shared_file(settings, f"{name}.events", MAX_SEEN * _EVENT_BYTES))
        _seen_events.setdefault(key, kept)
    return _seen_events[key]


def _app_name(settings: Settings) -> str:
    """Return a name for the connection's app that nobody can guess without its secret."""
    app = cast("App", settings.app)
    parts = (settings.base_url, app.client_id, app.client_secret)
    return sha256(json.dumps(parts).encode()).hexdigest()


def shared_file(settings: Settings, name: str, max_bytes: int = _MAX_FILE_BYTES) -> SharedFile | None:
    """Return a file that the processes of this host share; None where the connection says no.

    :param settings: what the connection says.
    :param name: of the file.
    :param max_bytes: how much of it is read.
    """
    if settings.token_cache is False:
        return None
    directory = default_directory() if settings.token_cache is True else Path(settings.token_cache)
    return SharedFile(directory / name, max_bytes)


def forget() -> None:
    """Forget what this process has in memory."""
    _shelves.clear()
    _bans.clear()
    _suite_tickets.clear()
    _seen_events.clear()
    SharedFile._warned.clear()
