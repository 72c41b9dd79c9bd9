"""Access tokens and address bans: which of them is used, when, and by whom.

A process that starts afresh is played by one that has forgotten all; real processes are in
``test_token_sharing``.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.shared_files import SharedFile, default_directory
from airflow_provider_dingconf.client.token_cache import (
    AddressBan,
    TokenCache,
    address_ban_of,
    token_cache_of,
)
from airflow_provider_dingconf.dingtalk.errors import AddressBannedError
from airflow_provider_dingconf.dingtalk.tokens import Token
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from client.files import APP, LIFETIME, SETTINGS, TOKEN, fetched, mode, replace, token_file, warnings_of


class FileSystem:
    """A directory whose file system has a clock of its own, which the test sets.

    :param path: of the one file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = self.written = 0.0

    def file(self) -> SharedFile:
        """Return the file, as a process opens it."""
        return _DatedFile(self)


class _DatedFile(SharedFile):
    def __init__(self, system: FileSystem) -> None:
        super().__init__(system.path)
        self._system = system

    def write(self, content: bytes) -> None:
        super().write(content)
        self._system.written = self._system.now

    def age(self) -> float | None:
        return self._system.now - self._system.written


def test_connections_that_differ_in_anything_even_the_secret_have_different_files(private: Path) -> None:
    apps = [
        APP,
        replace(APP, client_secret="another-secret"),
        replace(APP, client_id="another-id"),
        replace(APP, corp_id="another-corp"),
        replace(APP, suite_ticket="a-ticket"),
    ]
    settings = [replace(SETTINGS, app=app, token_cache=str(private)) for app in apps]
    settings.append(replace(settings[0], base_url="https://api.dingtalk.com"))
    for number, each in enumerate(settings):
        token_cache_of(each).put(Token(f"token-{number}", 1_000, LIFETIME))
    assert len(list(private.iterdir())) == len(settings)
    token_cache.forget()
    found = [token_cache_of(each).get(None, now=1_001) for each in settings]
    assert [token and token.value for token in found] == [
        f"token-{number}" for number in range(len(settings))
    ]


def test_a_new_suite_ticket_does_not_cost_a_token() -> None:
    old, new = (replace(SETTINGS, app=replace(APP, suite_ticket=ticket)) for ticket in ("old", "new"))
    token_cache_of(old).put(TOKEN)
    token_cache.forget()
    assert token_cache_of(new).get(None, now=1_001) == TOKEN


def test_a_changed_secret_makes_the_file_void(private: Path) -> None:
    old = replace(SETTINGS, token_cache=str(private))
    new = replace(old, app=replace(APP, client_secret="the-new-secret"))
    token_cache_of(old).put(TOKEN)
    file = token_file(private)
    token_cache_of(new).put(TOKEN)
    (newer,) = {*private.glob("*.token")} - {file}
    shutil.copy(file, newer)  # even under the new name
    token_cache.forget()
    assert token_cache_of(new).get(None, now=1_001) is None
    assert token_cache_of(old).get(None, now=1_001) == TOKEN


# What the connection says


def test_a_process_uses_the_token_that_another_fetched(lock: Any, sandbox: Sandbox) -> None:
    lock()
    lock()
    assert fetched(sandbox) == 1


def test_the_directory_can_be_set(lock: Any, directory: Path, sandbox: Sandbox) -> None:
    lock()
    lock()
    assert fetched(sandbox) == 1
    assert token_file(directory).stat().st_size
    assert mode(directory) == 0o700
    assert not default_directory().exists()


def test_the_sharing_can_be_switched_off(
    lock: Any, conn: Any, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    conn(extra={"token_cache": False})
    lock()
    lock()
    assert fetched(sandbox) == 2
    assert not default_directory().exists()
    assert not warnings_of(caplog)
    DingTalkConferenceHook().unlock_conference("sandbox-open")
    assert fetched(sandbox) == 2, "the hooks of a process share it"


def test_nothing_is_shared_of_a_static_token(lock: Any, conn: Any, sandbox: Sandbox) -> None:
    conn("static_token")
    lock()
    assert fetched(sandbox) == 0
    assert not default_directory().exists()


# When a token is too old


@pytest.mark.parametrize(
    ("seconds", "usable"),
    [
        (0, True),
        (6_999, True),
        (7_000, False),
        (7_200, False),
        (10**7, False),
        (-1, False),
        (-(10**7), False),
    ],
)
def test_a_clock_that_jumps_makes_a_token_stale(private: Path, seconds: float, usable: bool) -> None:
    """As does one that goes on: a token is renewed a little before it expires."""
    system = FileSystem(private / "a.token")
    system.now = 1_000
    first = TokenCache("the-secret", system.file())
    first.put(TOKEN)
    system.now += seconds
    expected = TOKEN if usable else None
    assert first.get(None, now=1_000 + seconds) == expected
    assert TokenCache("the-secret", system.file()).get(None, now=1_000 + seconds) == expected


class Processes:
    """Some processes that share a file, and count the tokens they fetch.

    :param skews: how far the clock of each is ahead, in seconds.
    """

    def __init__(self, path: Path, skews: Sequence[float] = (0, 0, 0, 0, 0)) -> None:
        self.fetched = 0
        self._skews = skews
        self._system = FileSystem(path)
        self.restart()

    def restart(self) -> None:
        """Replace each process by a new one, which has nothing in memory."""
        self._caches = [TokenCache("the-secret", self._system.file()) for _ in self._skews]

    def call(self, now: float, refused: Token | None = None) -> list[Token]:
        """Let each process in turn get a token, and fetch one if there is none."""
        self._system.now = now
        return [
            self._token(cache, now + skew, refused)
            for cache, skew in zip(self._caches, self._skews, strict=True)
        ]

    def _token(self, cache: TokenCache, now: float, refused: Token | None) -> Token:
        token = cache.get(refused, now)
        if token is None:
            self.fetched += 1
            token = Token(f"token-{self.fetched}", now, LIFETIME)
            cache.put(token)
        return token


@pytest.mark.parametrize("jump", [-(10**9), -86_400, -3_600, -1, 1, 3_600, 86_400, 10**9], ids="{:+}".format)
def test_a_clock_that_jumps_costs_at_most_one_token(private: Path, jump: float) -> None:
    processes = Processes(private / "a.token")
    now = 2e9
    processes.call(now)
    processes.call(now + jump)
    processes.call(now + jump + 3_000)
    assert processes.fetched <= 2
    processes.call(now + jump + 7_000)
    processes.call(now + jump + 7_001)
    assert processes.fetched <= 3, "and the renewal comes when it is due"


def test_a_clock_that_jumps_there_and_back_costs_a_token_for_each_jump(private: Path) -> None:
    processes = Processes(private / "a.token")
    for now in (1e9, 2e9, 1e9 + 10, 1e9 + 20):
        processes.call(now)
    assert processes.fetched == 3


@pytest.mark.parametrize("skew", [-86_400, -10_800, -3_600, 3_600, 10_800, 86_400], ids="{:+}".format)
def test_clocks_that_differ_cost_one_token_more_in_ten_minutes_at_most(private: Path, skew: float) -> None:
    processes = Processes(private / "a.token", skews=(0, skew, 0, skew))
    for minute in range(60):
        processes.restart()
        processes.call(now=1e9 + 60 * minute)
    assert processes.fetched <= 1 + 60 / 10


@pytest.mark.parametrize("skew", [-10_800, 10_800], ids="{:+}".format)
def test_a_long_lived_process_keeps_a_token_of_another_clock_for_ten_minutes_at_most(
    private: Path, skew: float
) -> None:
    system = FileSystem(private / "a.token")
    cache, other = TokenCache("the-secret", system.file()), TokenCache("the-secret", system.file())
    other.put(Token("the-token", 1e9 + skew, LIFETIME))
    found = []
    for system.now in (0, 300, 599, 601):
        found.append(cache.get(None, now=1e9 + system.now) is not None)
    assert found == [True, True, True, False]
    assert cache.get(None, now=1e9 - 100) is None, "nor if its clock is set back meanwhile"


def test_a_short_lived_token_of_another_clock_is_not_used_after_it_has_expired(private: Path) -> None:
    system = FileSystem(private / "a.token")
    TokenCache("the-secret", system.file()).put(Token("the-token", 1e9 + 10_800, lifetime=60))
    system.now = 59
    assert TokenCache("the-secret", system.file()).get(None, now=1e9 + 59) is None


def test_a_refused_token_of_another_clock_is_not_used_again(private: Path) -> None:
    processes = Processes(private / "a.token", skews=(0, 10_800))
    (refused, same) = processes.call(now=1e9)
    assert refused == same
    (newer, *_) = processes.call(now=1e9 + 1, refused=refused)
    assert newer != refused
    assert processes.fetched <= 3


def test_a_refused_token_is_outdone_by_a_newer_one_alone(private: Path) -> None:
    processes = Processes(private / "a.token")
    (refused, *_) = processes.call(now=1_000)
    (newer, *_) = processes.call(now=1_100, refused=refused)
    assert processes.fetched == 2
    assert set(processes.call(now=1_101, refused=refused)) == {newer}
    processes.call(now=1_102, refused=newer)
    assert processes.fetched == 3, "the old one is not tried again"


def test_a_refused_token_is_outdone_by_what_was_fetched_after_the_clock_went_back(private: Path) -> None:
    processes = Processes(private / "a.token")
    (refused, *_) = processes.call(now=1e9)
    processes.call(now=1e9 - 3_600, refused=refused)
    assert processes.fetched == 2


def test_a_token_that_dingtalk_renewed_is_newer_though_its_value_is_the_same(private: Path) -> None:
    file = SharedFile(private / "a.token")
    renewed = replace(TOKEN, fetched_at=1_100)
    one, other = (TokenCache("the-secret", file) for _ in range(2))
    one.put(TOKEN)
    assert other.get(None, now=1_001) == TOKEN
    one.put(renewed)
    assert other.get(TOKEN, now=1_101) == renewed


def test_a_ban_does_not_outlast_a_clock_that_went_back() -> None:
    ban = AddressBan(SETTINGS.base_url)
    ban.put(now=2e9, seconds=300)
    assert ban.seconds_left(now=2e9 + 1) == 299
    assert ban.seconds_left(now=1e9) == 0
    assert ban.seconds_left(now=3e9) == 0


@pytest.mark.parametrize("skew", [-86_400, -3_600, 3_600, 86_400], ids="{:+}".format)
def test_a_ban_holds_for_processes_whose_clocks_differ(private: Path, skew: float) -> None:
    system = FileSystem(private / "host.ban")
    AddressBan(SETTINGS.base_url, system.file()).put(now=2e9, seconds=300)
    token_cache.forget()  # as another process begins
    ban = AddressBan(SETTINGS.base_url, system.file())
    system.now = 100
    assert ban.seconds_left(now=2e9 + skew + 100) == 200
    assert ban.seconds_left(now=2e9 + skew + 250) == 50
    assert ban.seconds_left(now=2e9 + skew + 300) == 0
    system.now = 300
    token_cache.forget()
    assert AddressBan(SETTINGS.base_url, system.file()).seconds_left(now=2e9 + skew + 300) == 0


def test_a_ban_can_be_cleared_for_all_processes(tmp_path: Path) -> None:
    settings = replace(SETTINGS, token_cache=str(tmp_path / "cache"))
    address_ban_of(settings).put(now=1_000, seconds=300)
    address_ban_of(settings).clear()
    assert address_ban_of(settings).seconds_left(now=1_000) == 0
    token_cache.forget()
    assert address_ban_of(settings).seconds_left(now=1_000) == 0


def test_a_ban_ends_for_all_processes_when_its_file_is_deleted(tmp_path: Path) -> None:
    settings = replace(SETTINGS, token_cache=str(tmp_path / "cache"))
    ban = address_ban_of(settings)
    ban.put(now=1_000, seconds=300)
    assert ban.seconds_left(now=1_001)
    (file,) = (tmp_path / "cache").iterdir()
    assert ban.file is not None
    assert (str(ban.file), ban.file.path) == (
        f"{file.name!r} of the directory 'cache' in {str(tmp_path)!r}",
        file,
    )
    file.unlink()
    assert ban.seconds_left(now=1_002) == 0
    ban.put(now=1_003, seconds=300)
    assert ban.seconds_left(now=1_003)


def test_a_ban_by_a_sandbox_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", sandbox.connection_json())
        sandbox.fail(Fault(code="addressBanned"))
        hook = DingTalkConferenceHook()
        for _ in range(2):
            with pytest.raises(AddressBannedError):
                hook.lock_conference("sandbox-open")
        assert len(sandbox.calls) == 1
        hook.close()
    assert address_ban_of(hook.settings).seconds_left(time.time()) == 0
    token_cache.forget()
    assert address_ban_of(hook.settings).seconds_left(time.time()) == 0


def test_a_ban_that_could_not_be_written_holds_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    ban = AddressBan(SETTINGS.base_url, SharedFile(tmp_path / "cache" / "host.ban"))
    ban.put(now=1_000, seconds=300)
    assert [ban.seconds_left(now=1_000 + seconds) for seconds in (0, 100)] == [300, 200]


def test_a_ban_that_the_process_knows_of_holds_for_connections_with_other_files(tmp_path: Path) -> None:
    one, other = (replace(SETTINGS, token_cache=str(tmp_path / name)) for name in ("one", "other"))
    alone = replace(SETTINGS, token_cache=False)
    address_ban_of(one).put(now=1_000, seconds=300)
    assert [address_ban_of(each).seconds_left(now=1_100) for each in (one, other, alone)] == [200, 200, 200]
    assert not (tmp_path / "other").exists()

    token_cache.forget()  # as another process begins
    left = [address_ban_of(each).seconds_left(now=1_000) for each in (other, one, alone)]
    assert left == [0, pytest.approx(300, abs=1), pytest.approx(300, abs=1)]
    assert address_ban_of(replace(one, base_url="https://api.dingtalk.com")).seconds_left(now=1_100) == 0


BAN_DAMAGE = {
    "empty": b"",
    "no JSON": b"\xff\xfe",
    "a number": b"5",
    "too few": b"[1]",
    "too many": b"[1, 2, 3]",
    "texts": b'["a", "b"]',
    "lists": b"[[], {}]",
    "an object": b'{"began": 0, "until": 99999999999}',
    "null": b"null",
    "not a number": b"[NaN, NaN]",
    "nested without end": b"[" * 60_000,
    "too large a number": b"[0, 1" + b"0" * 400 + b"]",
}


@pytest.mark.parametrize("content", BAN_DAMAGE.values(), ids=BAN_DAMAGE)
def test_a_damaged_file_of_a_ban_is_as_none(private: Path, content: bytes) -> None:
    file = private / "host.ban"
    file.write_bytes(content)
    file.chmod(0o600)
    ban = AddressBan(SETTINGS.base_url, SharedFile(file))
    assert ban.seconds_left(now=1_000) == 0
    ban.put(now=1_000, seconds=300)
    token_cache.forget()
    assert ban.seconds_left(now=1_001) == pytest.approx(300, abs=1)


# Threads and coroutines


def test_the_threads_and_coroutines_of_a_process_fetch_one_token_together(
    conn: Any, sandbox: Sandbox
) -> None:
    conn(extra={"token_cache": False})  # in memory alone
    sandbox.fail(Fault(call="token", delay=0.2))

    def lock(_: int) -> bool:
        hook = DingTalkConferenceHook()
        try:
            return hook.lock_conference("sandbox-open")["success"]
        finally:
            hook.close()

    async def alock_many() -> list[bool]:
        each = (DingTalkConferenceHook().alock_conference("sandbox-open") for _ in range(20))
        return [result["success"] for result in await asyncio.gather(*each)]

    with ThreadPoolExecutor(20) as pool:
        threads = [pool.submit(lock, number) for number in range(19)]
        loop = pool.submit(asyncio.run, alock_many())
        assert all(thread.result() for thread in threads)
        assert all(loop.result())
    assert fetched(sandbox) == 1
    assert len(sandbox.calls_of("lock")) == 39


def test_threads_whose_token_is_refused_fetch_one_more_together(conn: Any, sandbox: Sandbox) -> None:
    conn(extra={"token_cache": False})
    hooks = [DingTalkConferenceHook() for _ in range(10)]
    hooks[0].lock_conference("sandbox-open")
    sandbox.revoke_tokens()
    with ThreadPoolExecutor(len(hooks)) as pool:
        assert all(pool.map(lambda hook: hook.lock_conference("sandbox-open"), hooks))
    for hook in hooks:
        hook.close()
    assert fetched(sandbox) == 2
