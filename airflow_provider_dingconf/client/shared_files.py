"""Small files that the processes of a host share: those of one user, or of a group of users.

The files are a convenience. If one cannot be used, the processes share nothing, and log one warning for each
directory; no call fails.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from filelock import BaseFileLock, FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FILE_BYTES = 256 * 1024
"""How much of a file is read at most."""

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """Return the directory of this user's shared files, which is local to the host."""
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written to: the first use of this one logs a warning
        temporary = "/tmp"  # noqa: S108  # nosec B108
    return Path(temporary) / f"airflow-provider-dingconf-{os.geteuid()}"


class SharedFile:
    """A file that processes share, in a directory of one user or, if allowed, of a group.

    :param path: the file. The first write creates its directory, for the user alone.
    :param group: whether the directory may belong to a group (mode 0770 or 2770). Its files then belong to
        that group, too (mode 0660), whoever writes them.
    """

    warned: ClassVar[set[Path]] = set()
    """The directories for which a warning was logged."""

    def __init__(self, path: Path, *, group: bool = False) -> None:
        self.path = path
        self._group = group

    def __str__(self) -> str:
        return f"{self.path.name!r} of the directory {_shown(self.path.parent)}"

    def read(self) -> bytes | None:
        """Return the content; None if there is no file that can be trusted."""
        with self._warns(), suppress(FileNotFoundError):
            directory = self._check_directory()
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:  # noqa: PTH123
                found = os.fstat(descriptor)
                of_group = _is_of_group(directory) and found.st_gid == directory.st_gid
                allowed = (of_group and not found.st_mode & 0o007) or _is_private(found)
                if not stat.S_ISREG(found.st_mode) or not allowed:
                    raise PermissionError("a file in it is not a regular one, or others have access to it")
                return file.read(MAX_FILE_BYTES)
        return None

    def write(self, content: bytes) -> None:
        """Replace the content in one step: a reader sees either the old content or the new one, whole."""
        with self._warns(), self._new_file(content, self._make_directory()) as new:
            new.replace(self.path)

    def version(self) -> object:
        """Return a value that changes with each write; None if there is no file."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def age(self) -> float | None:
        """Return the seconds since the file was written; None if they are not known.

        Both times are the file system's, so processes whose clocks differ agree on the age. A file from the
        future has no known age: the clock was set back.
        """
        now = time.time()  # for a disk that is full or read-only, which does not tell the time
        with suppress(OSError), tempfile.TemporaryFile(dir=self.path.parent) as just_now:
            now = os.fstat(just_now.fileno()).st_mtime
        with suppress(FileNotFoundError):
            age = now - self.path.lstat().st_mtime
            return age if age >= 0 else None
        return None

    def lock(self) -> BaseFileLock | None:
        """Return the file's lock, acquired; None if the file cannot be locked.

        :raises Timeout: another process holds the lock.
        """
        with self._warns():
            path, directory = self.path.with_suffix(".lock"), self._make_directory()
            if _is_of_group(directory) and not os.path.lexists(path):
                # FileLock sets no group, and the mode too late: other users' processes could not open it.
                with self._new_file(b"", directory) as new, suppress(FileExistsError):
                    path.hardlink_to(new)
            lock = FileLock(path, mode=0o660 if _is_of_group(directory) else 0o600)
            lock.acquire(blocking=False)
            return lock
        return None

    @contextmanager
    def _warns(self) -> Iterator[None]:
        """Log a warning, once for each directory, if the block cannot use the file."""
        try:
            yield
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            directory = self.path.parent
            if directory not in self.warned:
                self.warned.add(directory)
                log.warning(
                    "DingTalk access tokens and events are not shared between processes: the directory %s "
                    "cannot be used: %s. Set token_cache on the connection to another one, or to false.",
                    _shown(directory),
                    getattr(error, "strerror", None) or error,
                )

    @contextmanager
    def _new_file(self, content: bytes, directory: os.stat_result) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".")  # its mode is 0600
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123
                if _is_of_group(directory):
                    os.fchown(descriptor, -1, directory.st_gid)
                    # The group is the one that the connection names.
                    os.fchmod(descriptor, 0o660)  # nosec B103
                file.write(content)
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _make_directory(self) -> os.stat_result:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._check_directory()

    def _check_directory(self) -> os.stat_result:
        found = self.path.parent.lstat()
        of_group = self._group and found.st_mode & 0o077 == 0o070
        if not stat.S_ISDIR(found.st_mode) or not (of_group or _is_private(found)):
            raise PermissionError(
                "it must be a directory, not a symbolic link, and this user's alone (mode 0700) or, if the "
                "connection names it, a group's (2770)"
            )
        return found


def _shown(path: Path) -> str:
    """Return a path in two parts. Airflow masks the whole one, because "token" is in the extra's name."""
    return f"{path.name!r} in {str(path.parent)!r}"


def _is_private(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _is_of_group(directory: os.stat_result) -> bool:
    return bool(directory.st_mode & 0o070)
