"""Access tokens shared between processes: private, useless without the secret, and never in a call's way."""

from __future__ import annotations

import logging
import os
import signal
import stat
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf import token_store
from airflow_provider_dingconf.connection import Settings
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = Settings("dingtalk_default", "https://api.dingtalk.io", App("id", "the-secret"))
NOW = 1_000_000.0
TOKEN = Token("a-token", NOW, 7200.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings whose tokens are shared in a directory of the test's own."""
    return replace(SETTINGS, token_cache=str(tmp_path / "cache"))


def kept(settings: Settings) -> Token | None:
    """Return the token that a new process finds."""
    token_store.forget()
    return token_store.shelf_of(settings).token(None, NOW)


def the_file(settings: Settings) -> Path:
    from pathlib import Path

    (found,) = Path(str(settings.token_cache)).glob("*.token")
    return found


def test_another_process_finds_the_token(settings: Settings) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    assert kept(settings) == TOKEN


def test_the_file_is_its_owners_alone_and_shows_nothing(settings: Settings) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    file = the_file(settings)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    content = file.read_bytes() + file.name.encode()
    assert b"a-token" not in content
    assert b"the-secret" not in content


@pytest.mark.parametrize(
    "app",
    [App("id", "another-secret"), App("other", "the-secret"), App("id", "the-secret", "corp")],
    ids=["secret", "app", "organisation"],
)
def test_other_credentials_have_another_token(settings: Settings, app: App) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    assert kept(replace(settings, app=app)) is None


def test_a_stolen_file_is_worth_nothing_without_the_secret(settings: Settings) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    thief = replace(settings, app=App("id", "guessed"))
    token_store.shelf_of(thief).put(TOKEN)
    content = the_files(settings)[0].read_bytes()
    for file in the_files(settings):
        file.write_bytes(content)
    assert [kept(settings), kept(thief)].count(None) == 1


def the_files(settings: Settings) -> list[Path]:
    from pathlib import Path

    return list(Path(str(settings.token_cache)).glob("*.token"))


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 60, -1])
def test_a_truncated_file_is_no_token(settings: Settings, length: int) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    file = the_file(settings)
    file.write_bytes(file.read_bytes()[:length])
    assert kept(settings) is None


def test_a_damaged_file_is_no_token_and_is_replaced(settings: Settings) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    file = the_file(settings)
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    assert kept(settings) is None
    token_store.shelf_of(settings).put(TOKEN)
    assert kept(settings) == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_is_open_to_others_is_not_trusted(settings: Settings, mode: int) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    the_file(settings).chmod(mode)
    assert kept(settings) is None


def test_a_directory_that_is_open_to_others_is_not_used(settings: Settings) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    the_file(settings).parent.chmod(0o777)
    assert kept(settings) is None


def test_a_file_of_another_user_is_not_trusted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert kept(settings) is None


def test_a_symbolic_link_is_not_followed(settings: Settings, tmp_path: Path) -> None:
    token_store.shelf_of(settings).put(TOKEN)
    file = the_file(settings)
    elsewhere = file.rename(tmp_path / "elsewhere")
    file.symlink_to(elsewhere)
    assert kept(settings) is None
    token_store.shelf_of(settings).put(Token("newer", NOW, 7200.0))
    assert not file.is_symlink(), "it is replaced, and its target left as it was"
    assert kept(settings) == Token("newer", NOW, 7200.0)


def test_a_directory_that_is_a_link_is_not_used(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    token_store.shelf_of(settings).put(TOKEN)
    assert not list((tmp_path / "real").iterdir())


def test_a_directory_that_cannot_be_used_costs_one_warning_and_never_a_call(
    conn: Callable[..., None],
    sandbox: Sandbox,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    conn(extra={"token_cache": str(tmp_path / "file" / "cache")})
    token_store.log.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING)
    try:
        for _ in range(2):
            assert DingTalkConferenceHook().lock_conference("sandbox-open")["success"]
            DingTalkConferenceHook().lock_conference("sandbox-flaky")
    finally:
        token_store.log.removeHandler(caplog.handler)
    records = {id(r): r for r in caplog.records if "not shared" in r.getMessage()}
    assert len(records) == 1
    assert "set token_cache" in next(iter(records.values())).getMessage()
    assert len(sandbox.calls_of("token")) == 1, "shared within the process all the same"


def test_a_connection_may_share_nothing(conn: Callable[..., None], sandbox: Sandbox) -> None:
    conn(extra={"token_cache": False})
    DingTalkConferenceHook().lock_conference("sandbox-open")
    assert not token_store.default_directory().exists()
    token_store.forget()
    DingTalkConferenceHook().lock_conference("sandbox-open")
    assert len(sandbox.calls_of("token")) == 2


@pytest.mark.parametrize(("seconds", "usable"), [(-1, False), (0, True), (6999, True), (7000, False)])
def test_a_clock_that_jumps_makes_a_token_stale(settings: Settings, seconds: int, usable: bool) -> None:
    shelf = token_store.shelf_of(settings)
    shelf.put(TOKEN)
    assert (shelf.token(None, NOW + seconds) == TOKEN) is usable


def test_a_refused_token_is_not_given_again(settings: Settings) -> None:
    shelf = token_store.shelf_of(settings)
    shelf.put(TOKEN)
    assert shelf.token(TOKEN, NOW) is None
    shelf.put(Token("newer", NOW, 7200.0))
    assert shelf.token(TOKEN, NOW) == Token("newer", NOW, 7200.0)


def test_a_ban_is_known_to_the_other_processes_until_it_is_over(settings: Settings) -> None:
    token_store.ban_of(settings).put(NOW, 300.0)
    token_store.forget()
    ban = token_store.ban_of(settings)
    assert [ban.seconds_left(NOW + at) for at in (-1, 0, 299, 300)] == [0, 300, 1, 0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'["a", "b"]', b"null", b"7"])
def test_a_damaged_ban_is_none(settings: Settings, content: bytes) -> None:
    from pathlib import Path

    token_store.ban_of(settings).put(NOW, 300.0)
    (file,) = Path(str(settings.token_cache)).glob("*.ban")
    file.write_bytes(content)
    token_store.forget()
    assert token_store.ban_of(settings).seconds_left(NOW) == 0


# Processes.


def forked(action: Callable[[], object]) -> int:
    """Do something in a process of its own, as Airflow's task processes are made, and return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)


def ended_well(process: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def lock() -> Any:
    return DingTalkConferenceHook().lock_conference("sandbox-open")


def test_twenty_processes_at_once_buy_one_token(conn: Callable[..., None], sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="token", delay=0.3))
    processes = [forked(lock) for _ in range(20)]
    assert [ended_well(process) for process in processes] == [True] * 20
    assert len(sandbox.calls_of("token")) == 1
    assert len(sandbox.calls_of("lock")) == 20


def test_a_process_that_is_killed_while_it_buys_keeps_nobody_waiting(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    sandbox.fail(Fault(call="token", delay=20, times=1))
    process = forked(lock)
    while not sandbox.calls_of("token"):
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert not ended_well(process)
    began = time.monotonic()
    assert lock()["success"]
    assert time.monotonic() - began < token_store.LOCK_SECONDS


def test_a_process_that_does_not_come_to_an_end_with_buying_is_not_waited_for(
    conn: Callable[..., None], sandbox: Sandbox
) -> None:
    hook = DingTalkConferenceHook(max_seconds=2)
    shelf = token_store.shelf_of(hook.settings)
    assert shelf.try_lock()
    try:
        assert hook.lock_conference("sandbox-open")["success"]
    finally:
        shelf.unlock()
    assert len(sandbox.calls_of("token")) == 1
