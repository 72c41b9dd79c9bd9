"""Access tokens, address bans, suite tickets and seen events: what a process keeps, and uses of others.

A cache that has just been made, or forgotten all, plays a new process; real ones are in ``test_token_sharing``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.shared_files import SharedFile, default_directory
from airflow_provider_dingconf.client.token_cache import (
    MAX_SEEN,
    AddressBan,
    SeenEvents,
    SuiteTicket,
    TokenCache,
    address_ban_of,
    suite_ticket_of,
    token_cache_of,
)
from airflow_provider_dingconf.dingtalk.errors import AddressBannedError
from airflow_provider_dingconf.dingtalk.tokens import Token
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from client.files import APP, LIFETIME, SETTINGS, TOKEN, fetched, mode, replace, token_file, warnings_of


class DatedFile(SharedFile):
    """A file on a file system whose clock the test sets."""

    now = written = 0.0
    writes = 0

    def write(self, content: bytes) -> None:
        super().write(content)
        self.written = self.now
        self.writes += 1

    def version(self) -> object:
        return self.writes or None

    def age(self) -> float | None:
        return self.now - self.written if self.now >= self.written else None


@pytest.fixture
def file(tmp_path: Path) -> DatedFile:
    return DatedFile(tmp_path / "file")


# What the connection says


def test_connections_that_differ_in_anything_even_the_secret_have_different_tokens(tmp_path: Path) -> None:
    apps = [
        APP,
        replace(APP, client_secret="another-secret"),
        replace(APP, client_id="another-id"),
        replace(APP, corp_id="another-corp"),
        replace(APP, suite_ticket="a-ticket"),
    ]
    settings = [replace(SETTINGS, app=app, token_cache=str(tmp_path)) for app in apps]
    settings.append(replace(settings[0], base_url="https://api.dingtalk.com"))
    for number, each in enumerate(settings):
        token_cache_of(each).put(Token(f"token-{number}", 1_000, LIFETIME), now=1_000)
    assert len(list(tmp_path.iterdir())) == len(settings)
    token_cache.forget()
    # A new suite ticket costs no new token.
    settings[4] = replace(settings[4], app=replace(APP, suite_ticket="a-new-ticket"))
    found = [token_cache_of(each).get(None, now=1_001) for each in settings]
    assert [token and token.value for token in found] == [f"token-{number}" for number in range(6)]


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


def test_a_static_token_is_not_shared(lock: Any, conn: Any, sandbox: Sandbox) -> None:
    conn("static_token")
    lock()
    assert fetched(sandbox) == 0
    assert not default_directory().exists()


# When a token is too old


@pytest.mark.parametrize("seconds", [0, 6_999, 7_000, 7_200, 10**7])
def test_a_token_is_renewed_a_little_before_it_expires(file: DatedFile, seconds: float) -> None:
    first = TokenCache("the-secret", file)
    first.put(TOKEN, now=1_000)
    file.now = seconds
    for cache, clock in ((first, 1_000), (TokenCache("the-secret", file), 5)):
        assert cache.get(None, now=clock + seconds) == (TOKEN if seconds < 7_000 else None)


@pytest.mark.parametrize(
    ("jump", "usable"),
    [(0, True), (6_999, True), *((jump, False) for jump in (7_000, 7_200, 10**7, -1, -(10**7)))],
)
def test_a_clock_that_jumps_makes_a_token_stale(file: DatedFile, jump: float, usable: bool) -> None:
    """But not for processes that have it in memory."""
    first = TokenCache("the-secret", file)
    first.put(TOKEN, now=1_000)
    file.now = jump
    assert TokenCache("the-secret", file).get(None, now=1_001) == (TOKEN if usable else None)
    assert first.get(None, now=1_001) == TOKEN


class Processes:
    """Processes that share a file, and count the tokens they fetch.

    :param skews: how far the clock of each is ahead, in seconds.
    """

    def __init__(self, file: DatedFile, *skews: float) -> None:
        self.fetched = 0
        self._file = file
        self._skews = skews or (0, 0, 0, 0, 0)
        self.restart()

    def restart(self) -> None:
        """Replace each process by a new one, which has nothing in memory."""
        self._caches = [TokenCache("the-secret", self._file) for _ in self._skews]

    def call(self, now: float, refused: Token | None = None, jump: float = 0.0) -> list[Token]:
        """Let each process, one after the other, get a token, and fetch one if there is none.

        :param jump: how far the clock of the file system has jumped.
        """
        self._file.now = now + jump
        pairs = zip(self._caches, self._skews, strict=True)
        return [self._token(cache, now + skew, refused) for cache, skew in pairs]

    def _token(self, cache: TokenCache, now: float, refused: Token | None) -> Token:
        token = cache.get(refused, now)
        if token is None:
            self.fetched += 1
            token = Token(f"token-{self.fetched}", now, LIFETIME)
            cache.put(token, now)
        return token


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("jump", [-(10**9), -86_400, -3_600, -1, 1, 3_600, 86_400, 10**9], ids="{:+}".format)
def test_a_clock_that_jumps_costs_at_most_one_token(file: DatedFile, jump: float, restarts: bool) -> None:
    processes = Processes(file)
    processes.call(2e9)
    for seconds, expected in ((0, 2), (3_000, 2), (7_000, 3), (7_001, 3)):
        if restarts:
            processes.restart()
        processes.call(2e9 + seconds, jump=jump)
        assert processes.fetched <= expected


@pytest.mark.parametrize("skew", [-86_400, -10_800, -3_600, 3_600, 10_800, 86_400], ids="{:+}".format)
def test_clocks_that_differ_cost_no_token(file: DatedFile, skew: float) -> None:
    processes = Processes(file, 0, skew, 0, skew)
    for minute in range(60):
        processes.restart()
        processes.call(now=1e9 + 60 * minute)
    assert processes.fetched == 1


@pytest.mark.parametrize(("skew", "lifetime", "seconds"), [
    (-10_800, LIFETIME, 7_000), (10_800, LIFETIME, 7_000), (10_800, 60, 58),
])  # fmt: skip
def test_a_token_of_another_clock_is_used_until_it_is_to_be_renewed(
    file: DatedFile, skew: float, lifetime: float, seconds: float
) -> None:
    cache = TokenCache("the-secret", file)
    TokenCache("the-secret", file).put(Token("the-token", 1e9 + skew, lifetime), now=1e9 + skew)
    for file.now, usable in ((0, True), (seconds / 2, True), (seconds - 1, True), (seconds + 1, False)):
        assert (cache.get(None, now=1e9 + file.now) is not None) is usable


# When a token is refused


def test_a_refused_token_of_another_clock_is_not_used_again(file: DatedFile) -> None:
    processes = Processes(file, 0, 10_800)
    (refused, same) = processes.call(now=1e9)
    assert refused == same
    (newer, *_) = processes.call(now=1e9 + 1, refused=refused)
    assert newer != refused
    assert processes.fetched == 2


def test_a_refused_token_is_replaced_by_a_newer_one_only(file: DatedFile) -> None:
    processes = Processes(file)
    (refused, *_) = processes.call(now=11_000)
    (newer, *_) = processes.call(now=11_100, refused=refused)
    assert processes.fetched == 2
    assert set(processes.call(now=11_101, refused=refused)) == {newer}
    processes.call(now=11_102, refused=newer)
    assert processes.fetched == 3, "the old one is not tried again"
    (newest, *_) = processes.call(now=11_103)
    processes.call(now=11_104, refused=newest, jump=-3_600)  # the clock went back
    assert processes.fetched == 4


def test_a_token_that_dingtalk_renewed_is_newer_though_its_value_is_the_same(file: DatedFile) -> None:
    renewed = replace(TOKEN, fetched_at=1_100)
    one, other = (TokenCache("the-secret", file) for _ in range(2))
    one.put(TOKEN, now=1_000)
    assert other.get(None, now=1_001) == TOKEN
    one.put(renewed, now=1_100)
    assert other.get(TOKEN, now=1_101) == renewed


# Threads and coroutines


def test_threads_that_begin_at_once_all_find_the_token_of_another_process(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "file")
    TokenCache("the-secret", file).put(TOKEN, time.monotonic())
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            cache, begin = TokenCache("the-secret", file), threading.Barrier(8)

            def get(cache: TokenCache = cache, begin: threading.Barrier = begin) -> Token | None:
                begin.wait()
                return cache.get(None, time.monotonic())

            assert {*pool.map(lambda work: work(), [get] * 8)} == {TOKEN}


def test_threads_and_coroutines_of_a_process_fetch_one_token_together(conn: Any, sandbox: Sandbox) -> None:
    conn(extra={"token_cache": False})  # in memory alone
    sandbox.fail(Fault(call="token", delay=0.2))
    hooks = [DingTalkConferenceHook() for _ in range(19)]

    async def alock_many() -> list[bool]:
        each = (DingTalkConferenceHook().alock_conference("sandbox-open") for _ in range(20))
        return [result["success"] for result in await asyncio.gather(*each)]

    def lock(hook: DingTalkConferenceHook) -> bool:
        return hook.lock_conference("sandbox-open")["success"]

    with ThreadPoolExecutor(20) as pool:
        loop = pool.submit(asyncio.run, alock_many())
        assert all(pool.map(lock, hooks))
        assert all(loop.result())
        assert fetched(sandbox) == 1
        assert len(sandbox.calls_of("lock")) == 39
        sandbox.revoke_tokens()
        assert all(pool.map(lock, hooks))
        assert fetched(sandbox) == 2
    for hook in hooks:
        hook.close()


# Address bans


def test_a_ban_does_not_outlast_a_clock_that_went_back(
    sandbox: Sandbox, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fail(Fault(code="addressBanned"))
    left = []
    for clock in (time.time(), time.time() - 86_400):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with closing(DingTalkConferenceHook()) as hook, pytest.raises(AddressBannedError) as caught:
            hook.lock_conference("sandbox-open")
        left.append(caught.value.retry_after)
    assert left[1] < left[0]
    assert len(sandbox.calls) == 1


def test_a_ban_is_over_when_its_seconds_have_passed() -> None:
    ban = AddressBan(SETTINGS.base_url)
    ban.put(now=2e9, seconds=300)
    assert [ban.seconds_left(now) for now in (2e9 + 1, 2e9 + 300, 3e9)] == [299, 0, 0]


@pytest.mark.parametrize("skew", [-86_400, -3_600, 3_600, 86_400], ids="{:+}".format)
def test_a_ban_holds_for_processes_whose_clocks_differ(file: DatedFile, skew: float) -> None:
    AddressBan(SETTINGS.base_url, file).put(now=2e9, seconds=300)
    token_cache.forget()
    ban = AddressBan(SETTINGS.base_url, file)
    file.now = 100
    assert [ban.seconds_left(2e9 + skew + after) for after in (100, 250, 300)] == [200, 50, 0]
    file.now = 300
    token_cache.forget()
    assert AddressBan(SETTINGS.base_url, file).seconds_left(now=2e9 + skew + 300) == 0


def test_a_ban_ends_for_all_processes_when_its_file_is_deleted(tmp_path: Path) -> None:
    settings = replace(SETTINGS, token_cache=str(tmp_path / "cache"))
    ban = address_ban_of(settings)
    ban.put(now=1_000, seconds=300)
    assert ban.seconds_left(now=1_001)
    (file,) = (tmp_path / "cache").iterdir()
    assert str(ban.file) == f"{file.name!r} of the directory 'cache' in {str(tmp_path)!r}"
    file.unlink()
    assert ban.seconds_left(now=1_002) == 0
    token_cache.forget()
    assert address_ban_of(settings).seconds_left(now=1_002) == 0
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
    assert address_ban_of(hook.settings).seconds_left(time.monotonic()) == 0
    token_cache.forget()
    assert address_ban_of(hook.settings).seconds_left(time.monotonic()) == 0


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
    token_cache.forget()
    left = [address_ban_of(each).seconds_left(now=1_000) for each in (other, one, alone)]
    assert left == [0, pytest.approx(300, abs=1), pytest.approx(300, abs=1)]
    assert address_ban_of(replace(one, base_url="https://api.dingtalk.com")).seconds_left(now=1_100) == 0


def test_a_ban_that_the_process_knows_of_outlasts_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    one, other = (SharedFile(tmp_path / name / "host.ban") for name in ("one", "other"))
    AddressBan(SETTINGS.base_url, other).put(now=1_000, seconds=1)
    AddressBan(SETTINGS.base_url, one).put(now=1_000, seconds=300)
    other.path.chmod(0o644)  # others can read the file, so nothing in it counts
    assert AddressBan(SETTINGS.base_url, other).seconds_left(now=1_100) == 200


def test_a_ban_that_could_not_be_read_at_first_holds_when_it_can(file: DatedFile) -> None:
    AddressBan(SETTINGS.base_url, file).put(now=1_000, seconds=300)
    token_cache.forget()
    ban = AddressBan(SETTINGS.base_url, file)
    file.path.chmod(0o644)
    assert ban.seconds_left(now=1_000) == 0
    file.path.chmod(0o600)
    assert ban.seconds_left(now=1_000) == 300


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"5", b"[1]", b"[1, 2, 3]", b'["a", "b"]', b"[[], {}]", b"null", b'{"seconds": "a"}',
        b'{"began": 0, "until": 99999999999}', b'{"seconds": NaN}', b'{"seconds": []}', b"[" * 60_000,
        b'{"seconds": 1' + b"0" * 400 + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_a_damaged_file_of_a_ban_is_ignored_and_replaced(file: DatedFile, content: bytes) -> None:
    file.write(content)
    ban = AddressBan(SETTINGS.base_url, file)
    assert ban.seconds_left(now=1_000) == 0
    ban.put(now=1_000, seconds=300)
    token_cache.forget()
    assert AddressBan(SETTINGS.base_url, file).seconds_left(now=1_000) == 300


# Suite tickets


@pytest.mark.parametrize("kind", ["third_party", "internal"])
def test_a_pushed_suite_ticket_that_is_refused_gives_way_to_the_connections(
    sandbox: Sandbox, conn: Any, kind: str
) -> None:
    conn(kind)
    hook = DingTalkConferenceHook()
    suite_ticket_of(hook.settings).put("a-ticket-of-old", 1.0)
    assert hook.lock_conference("sandbox-open")["success"]
    hook.close()
    tickets = [call.json().get("suiteTicket") for call in sandbox.calls_of("token")]
    assert tickets == (["a-ticket-of-old", sandbox.suite_ticket] if kind == "third_party" else [None])


@pytest.mark.parametrize("restarts", [False, True], ids=["in memory", "in the file"])
def test_the_newest_suite_ticket_counts_by_dingtalks_clock(file: DatedFile, restarts: bool) -> None:
    kept = SuiteTicket("the-secret", file)
    for ticket, made_at, expected in (
        ("of now", 1e9, "of now"),
        ("older", 1e9 - 1, "of now"),
        ("ahead of this clock", 9e11, "ahead of this clock"),
        ("without a time", None, "without a time"),
        ("older than that", 9e11 - 1, "without a time"),
        ("newest", 9e11 + 1, "newest"),
    ):
        if restarts:
            kept = SuiteTicket("the-secret", file)
        kept.put(ticket, made_at)
        assert kept.pushed == expected


def test_every_process_uses_a_ticket_without_a_time_once_it_is_pushed(file: DatedFile) -> None:
    one, other = (SuiteTicket("the-secret", file) for _ in range(2))
    for ticket in ("ticket-b", "ticket-a", "ticket-c"):
        one.put(ticket)
        assert other.pushed == ticket


# Seen events


def test_no_more_events_are_remembered_than_there_is_room_for(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "events")
    seen, other, again = (SeenEvents(file) for _ in range(3))
    seen.add(str(number) for number in range(MAX_SEEN + 10))
    seen.save()
    other.add(["of another process"])
    other.save()
    again.load()
    assert file.path.stat().st_size == MAX_SEEN * 16
    for known, oldest in ((seen, 10), (again, 11)):
        assert [str(event) in known for event in (oldest - 1, oldest, MAX_SEEN + 9)] == [False, True, True]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_two_processes_add_to_the_events_they_remember_even_if_the_file_was_damaged(
    file: DatedFile, content: bytes
) -> None:
    file.write(content)
    one, other, again = (SeenEvents(file) for _ in range(3))
    one.load()
    for seen, event_id in ((one, "a"), (other, "b")):
        seen.add([event_id])
        seen.save()
    again.load()
    assert "a" in again
    assert "b" in again
