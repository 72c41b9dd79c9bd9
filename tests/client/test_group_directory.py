"""A directory that several users share, because the connection names it and a group owns it."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.shared_files import SharedFile, default_directory
from airflow_provider_dingconf.client.token_cache import suite_ticket_of
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox
from client.files import (
    NOBODY,
    SETTINGS,
    Warnings,
    found_of_all,
    let_others_enter,
    put_all,
    replace,
    warnings_of,
)

FORK = multiprocessing.get_context("fork")
GROUP = 54_321
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")


@pytest.fixture(params=[0o770, 0o2770], ids=oct)
def of_group(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a directory of a group."""
    let_others_enter(tmp_path)
    directory = tmp_path / "dingconf"
    directory.mkdir()
    os.chown(directory, 0, GROUP)
    directory.chmod(request.param)
    return directory


def as_user(uid: int, work: Callable[[], Any], **options: Any) -> tuple[Any, int]:
    """Return what some work returns in a new process of another user, and how many warnings it logs."""
    return started_as_user(uid, work, **options)()


def started_as_user(
    uid: int, work: Callable[[], Any], groups: Sequence[int] = (GROUP,), umask: int = 0o022
) -> Callable[[], tuple[Any, int]]:
    """Start a process of another user; return what waits for its result and the count of its warnings."""
    ours, theirs = FORK.Pipe()

    def run() -> None:
        os.umask(umask)
        os.setgroups(groups)
        os.setgid(uid)
        os.setuid(uid)
        token_cache.forget()
        warnings = Warnings()
        theirs.send((work(), warnings.count))

    process = FORK.Process(target=run, daemon=True)
    process.start()
    theirs.close()

    def result() -> tuple[Any, int]:
        found: tuple[Any, int] = ours.recv()
        process.join(60)
        return found

    return result


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_users_share_what_is_kept_in_a_directory_of_their_group(of_group: Path, umask: int) -> None:
    settings = replace(SETTINGS, token_cache=str(of_group))
    for writer, reader in ((NOBODY, NOBODY - 1), (NOBODY - 1, NOBODY)):
        assert as_user(writer, lambda: put_all(settings), umask=umask) == (None, 0)
        for user in (reader, 0):
            assert as_user(user, lambda: found_of_all(settings), umask=umask) == ([True] * 4, 0)
    files = [file.stat() for file in of_group.iterdir()]
    assert len(files) == 5
    assert {(stat.S_IMODE(file.st_mode), file.st_gid) for file in files} == {(0o660, GROUP)}


def test_users_wait_for_one_another_in_a_directory_of_their_group(of_group: Path) -> None:
    file = SharedFile(of_group / "a.token", group=True)

    def is_held() -> bool:
        try:
            return file.lock() is None
        except Timeout:
            return True

    for holder, other in ((NOBODY, NOBODY - 1), (NOBODY - 1, NOBODY), (0, NOBODY)):
        taken, done = (FORK.Event() for _ in range(2))

        def hold(taken: Any = taken, done: Any = done) -> bool:
            lock = file.lock()
            taken.set()
            done.wait(60)
            return lock is not None

        holding = started_as_user(holder, hold)
        assert taken.wait(60)
        assert as_user(other, is_held) == (True, 0)
        done.set()
        assert holding() == (True, 0)
        assert as_user(other, is_held) == (False, 0), "it is free again"


def test_processes_of_several_users_that_start_at_once_fetch_one_token_with_the_pushed_suite_ticket(
    of_group: Path, conn: Any, sandbox: Sandbox
) -> None:
    conn("third_party", extra={"token_cache": str(of_group)})
    settings = DingTalkConferenceHook().settings  # Airflow has then imported what the processes need
    ticket = sandbox.renew_suite_ticket()
    as_user(NOBODY, lambda: suite_ticket_of(settings).put(ticket, time.time()))
    start = FORK.Event()

    def lock() -> bool:
        start.wait(60)
        return bool(DingTalkConferenceHook().lock_conference("sandbox-open")["success"])

    results = [started_as_user(NOBODY - number % 3, lock) for number in range(10)]
    start.set()
    assert [result() for result in results] == [(True, 0)] * 10
    assert [call.json()["suiteTicket"] for call in sandbox.calls_of("token")] == [ticket]


def test_a_user_of_another_group_shares_nothing_and_is_warned_once(of_group: Path) -> None:
    settings = replace(SETTINGS, token_cache=str(of_group))
    as_user(NOBODY, lambda: put_all(settings))

    def find_and_put() -> list[bool]:
        found = found_of_all(settings)
        put_all(settings)
        return found

    assert as_user(NOBODY - 1, find_and_put, groups=[]) == ([False] * 4, 1)


@pytest.mark.parametrize("permissions", [0o750, 0o771, 0o774, 0o777, 0o1777, 0o2775], ids=oct)
def test_a_directory_that_others_than_the_group_may_enter_is_not_used(
    of_group: Path, permissions: int, caplog: pytest.LogCaptureFixture
) -> None:
    of_group.chmod(permissions)
    put_all(replace(SETTINGS, token_cache=str(of_group)))
    assert not [*of_group.iterdir()]
    assert len(warnings_of(caplog)) == 1


def test_a_file_of_another_group_or_open_to_others_is_not_used(of_group: Path) -> None:
    file = SharedFile(of_group / "host.ban", group=True)
    file.write(b"content")
    assert file.read() == b"content"
    file.path.chmod(0o664)
    assert file.read() is None
    file.path.chmod(0o660)
    os.chown(file.path, NOBODY, NOBODY)
    assert file.read() is None


def test_the_default_directory_is_never_a_groups(caplog: pytest.LogCaptureFixture) -> None:
    default_directory().mkdir()
    default_directory().chmod(0o2770)
    put_all(SETTINGS)
    assert not [*default_directory().iterdir()]
    assert len(warnings_of(caplog)) == 1
