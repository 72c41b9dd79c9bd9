"""The files that share access tokens: for their owner alone, worthless without the secret, never in the way.

A process that starts afresh is played by one that has forgotten all; real processes are in
``test_token_sharing``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.settings import Settings
from airflow_provider_dingconf.client.token_cache import (
    Ban,
    SharedFile,
    Shelf,
    ban_of,
    default_directory,
    shelf_of,
)
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
LIFETIME = 7_200.0
APP = App("the-id", "the-secret", "dingcorp")
SETTINGS = Settings("dingtalk_default", "https://api.dingtalk.io", APP)
TOKEN = Token("the-token", 1_000, LIFETIME)


@pytest.fixture
def lock(sandbox: Sandbox, conn: Any) -> Callable[..., None]:
    """Return what locks a meeting, as a process does that has just been started."""

    def lock(**options: Any) -> None:
        token_cache.forget()
        hook = DingTalkConferenceHook(**options)
        try:
            hook.lock_conference("sandbox-open")
        finally:
            hook.close()

    return lock


@pytest.fixture
def directory(tmp_path: Path, conn: Any) -> Path:
    """Return the directory of the connection's files, which is not there yet."""
    conn(extra={"token_cache": str(tmp_path / "cache")})
    return tmp_path / "cache"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Return a directory of its owner alone."""
    tmp_path.chmod(0o700)
    return tmp_path


def bought(sandbox: Sandbox) -> int:
    """Return how many access tokens were asked for."""
    return len(sandbox.calls_of("token"))


def token_file(directory: Path) -> Path:
    (file,) = directory.glob("*.token")
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == token_cache.__name__]


def give_away(path: Path) -> None:
    """Make something another user's or, where only root could do that, open to other users."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        path.chmod(path.stat().st_mode | 0o004)


@contextmanager
def as_ordinary_user(*paths: Path) -> Iterator[None]:
    """Do without root's power to ignore permissions; ``paths`` then belong to the user."""
    root = os.geteuid() == 0
    if root:
        for path in paths:
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# Who may read them


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_the_files_are_readable_by_their_owner_alone(lock: Any, umask: int) -> None:
    before = os.umask(umask)
    try:
        lock()
    finally:
        os.umask(before)
    directory = default_directory()
    assert (mode(directory), directory.stat().st_uid) == (0o700, os.geteuid())
    files = list(directory.iterdir())
    assert {file.suffix for file in files} == {".token", ".lock"}
    assert {(mode(file), file.stat().st_uid) for file in files} == {(0o600, os.geteuid())}


def test_a_ban_is_remembered_in_a_file_of_its_owner_alone(tmp_path: Path) -> None:
    settings = replace(SETTINGS, token_cache=str(tmp_path / "cache"))
    ban_of(settings).put(now=1_000, seconds=300)
    (file,) = (tmp_path / "cache").iterdir()
    assert (mode(file.parent), mode(file)) == (0o700, 0o600)
    token_cache.forget()
    assert ban_of(settings).seconds_left(now=1_100) == 200


def test_a_ban_that_the_process_knows_of_holds_for_connections_with_other_files(tmp_path: Path) -> None:
    one, other = (replace(SETTINGS, token_cache=str(tmp_path / name)) for name in ("one", "other"))
    alone = replace(SETTINGS, token_cache=False)
    ban_of(one).put(now=1_000, seconds=300)
    assert [ban_of(each).seconds_left(now=1_100) for each in (one, other, alone)] == [200, 200, 200]
    assert not (tmp_path / "other").exists()

    token_cache.forget()  # as another process begins
    assert [ban_of(each).seconds_left(now=1_100) for each in (other, one, alone)] == [0, 200, 200]
    assert ban_of(replace(one, base_url="https://api.dingtalk.com")).seconds_left(now=1_100) == 0


@pytest.mark.parametrize("kind", ["internal", "third_party", "unified"])
def test_the_files_say_nothing_in_the_clear_and_nor_do_their_names(
    lock: Any, conn: Any, sandbox: Sandbox, kind: Any
) -> None:
    conn(kind)
    lock()
    (call,) = sandbox.calls_of("lock")
    fields = sandbox.connection(kind)
    secrets = [call.header("x-acs-dingtalk-access-token"), fields["password"], fields["login"]]
    secrets += [sandbox.corp_id, sandbox.suite_ticket, "127.0.0.1", str(sandbox.port), "accessToken"]
    for file in default_directory().iterdir():
        shown = file.name.encode() + b" " + file.read_bytes()
        assert not [secret for secret in secrets if str(secret).encode() in shown]


def test_a_stolen_file_is_worth_nothing_without_the_secret(tmp_path: Path) -> None:
    shelf_of(replace(SETTINGS, token_cache=str(tmp_path / "cache"))).put(TOKEN)
    file = SharedFile(token_file(tmp_path / "cache"))
    assert Shelf("the-secret", file).token(None, now=1_001) == TOKEN
    known = [
        "",
        "the-id",
        "dingcorp",
        SETTINGS.base_url,
        file.path.stem,
        "The-secret",
        "the-secret ",
        "the-secre",
    ]
    assert [Shelf(guess, file).token(None, now=1_001) for guess in known] == [None] * len(known)


def test_what_differs_in_anything_has_a_file_of_its_own_and_the_secret_is_in_the_name(private: Path) -> None:
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
        shelf_of(each).put(Token(f"token-{number}", 1_000, LIFETIME))
    assert len(list(private.iterdir())) == len(settings)
    token_cache.forget()
    found = [shelf_of(each).token(None, now=1_001) for each in settings]
    assert [token and token.value for token in found] == [
        f"token-{number}" for number in range(len(settings))
    ]


def test_a_new_suite_ticket_does_not_cost_a_token() -> None:
    old, new = (replace(SETTINGS, app=replace(APP, suite_ticket=ticket)) for ticket in ("old", "new"))
    shelf_of(old).put(TOKEN)
    token_cache.forget()
    assert shelf_of(new).token(None, now=1_001) == TOKEN


def test_a_changed_secret_makes_the_file_void(private: Path) -> None:
    old = replace(SETTINGS, token_cache=str(private))
    new = replace(old, app=replace(APP, client_secret="the-new-secret"))
    shelf_of(old).put(TOKEN)
    file = token_file(private)
    shelf_of(new).put(TOKEN)
    (newer,) = {*private.glob("*.token")} - {file}
    shutil.copy(file, newer)  # even under the new name
    token_cache.forget()
    assert shelf_of(new).token(None, now=1_001) is None
    assert shelf_of(old).token(None, now=1_001) == TOKEN


# What the connection says


def test_a_process_uses_the_token_that_another_bought(lock: Any, sandbox: Sandbox) -> None:
    lock()
    lock()
    assert bought(sandbox) == 1


def test_the_directory_can_be_set(lock: Any, directory: Path, sandbox: Sandbox) -> None:
    lock()
    lock()
    assert bought(sandbox) == 1
    assert token_file(directory).stat().st_size
    assert mode(directory) == 0o700
    assert not default_directory().exists()


def test_the_sharing_can_be_switched_off(
    lock: Any, conn: Any, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    conn(extra={"token_cache": False})
    lock()
    lock()
    assert bought(sandbox) == 2
    assert not default_directory().exists()
    assert not warnings_of(caplog)
    DingTalkConferenceHook().unlock_conference("sandbox-open")
    assert bought(sandbox) == 2, "the hooks of a process share it all the same"


def test_nothing_is_shared_of_a_token_bought_elsewhere(lock: Any, conn: Any, sandbox: Sandbox) -> None:
    conn("static_token")
    lock()
    assert bought(sandbox) == 0
    assert not default_directory().exists()


# Files that are not as they should be


def open_file(directory: Path) -> None:
    token_file(directory).chmod(0o640)


def writable_file(directory: Path) -> None:
    token_file(directory).chmod(0o602)


def someone_elses_file(directory: Path) -> None:
    give_away(token_file(directory))


def symlink(directory: Path) -> None:
    file = token_file(directory)
    file.symlink_to(file.rename(directory / "elsewhere"))


def fifo(directory: Path) -> None:
    file = token_file(directory)
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize("spoil", [open_file, writable_file, someone_elses_file, symlink, fifo])
def test_a_file_that_is_not_its_users_alone_is_refused_and_replaced(
    lock: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    lock()
    spoil(directory)
    lock()
    assert bought(sandbox) == 2
    (warning,) = warnings_of(caplog)
    assert str(directory) in warning
    assert "token_cache" in warning
    lock()
    assert bought(sandbox) == 2, "the new file is shared again"
    found = token_file(directory).lstat()
    assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)) == (stat.S_IFREG, 0o600)
    assert found.st_uid == os.geteuid()


def test_what_a_symlink_leads_to_is_left_alone(lock: Any, directory: Path, tmp_path: Path) -> None:
    lock()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    file = token_file(directory)
    file.unlink()
    file.symlink_to(precious)
    lock()
    assert precious.read_text() == "mine"
    assert not token_file(directory).is_symlink()


def open_directory(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o750)


def enterable_directory(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o701)


def someone_elses_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    give_away(directory)


def symlinked_directory(directory: Path) -> None:
    elsewhere = directory.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)


def dangling_symlink(directory: Path) -> None:
    directory.symlink_to(directory.with_name("nowhere"))


def file_in_its_place(directory: Path) -> None:
    directory.write_text("")
    directory.chmod(0o600)


@pytest.mark.parametrize(
    "make",
    [
        open_directory,
        enterable_directory,
        someone_elses_directory,
        symlinked_directory,
        dangling_symlink,
        file_in_its_place,
    ],
)
def test_a_directory_that_is_not_its_users_alone_costs_the_sharing_and_one_warning(
    lock: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    make(directory)
    lock()
    DingTalkConferenceHook().unlock_conference("sandbox-open")
    assert len(warnings_of(caplog)) == 1
    assert bought(sandbox) == 1, "in memory it is still shared"
    lock()
    assert bought(sandbox) == 2
    assert not [*directory.parent.rglob("*.token")], "nothing is put there"


def test_a_token_in_a_directory_that_became_someone_elses_is_not_used(
    lock: Any, directory: Path, sandbox: Sandbox
) -> None:
    lock()
    give_away(directory)
    lock()
    assert bought(sandbox) == 2


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda content: content[:1],
    "salt alone": lambda content: content[:16],
    "half": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
    "first bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a bit in the middle": lambda content: content[:60] + bytes([content[60] ^ 4]) + content[61:],
    "nothing but zeros": lambda content: bytes(len(content)),
    "text": lambda _: b"a shopping list, and no more than that",
    "json": lambda _: json.dumps({"value": "forged", "fetched_at": 0, "lifetime": None}).encode(),
    "much": lambda _: b"A" * 10**7,
    "no text at all": lambda _: bytes(range(256)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_no_token_and_is_replaced(
    lock: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    lock()
    file = token_file(directory)
    file.write_bytes(damage(file.read_bytes()))
    lock()
    assert bought(sandbox) == 2
    assert "forged" not in [call.header("x-acs-dingtalk-access-token") for call in sandbox.calls_of("lock")]
    lock()
    assert bought(sandbox) == 2, "it was replaced"
    assert not warnings_of(caplog)


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
    ban = Ban(SETTINGS.base_url, SharedFile(file))
    assert ban.seconds_left(now=1_000) == 0
    ban.put(now=1_000, seconds=300)
    token_cache.forget()
    assert ban.seconds_left(now=1_001) == 299


@pytest.mark.parametrize(
    "path",
    [
        "/dev/null/cache",
        "/proc/airflow-provider-dingconf/cache",  # where nobody, root included, makes a directory
        "/" + "x" * 300,
    ],
    ids=["below a file", "below a directory of the system's", "too long a name"],
)
def test_a_directory_that_cannot_be_used_costs_one_warning_and_never_a_call(
    lock: Any, conn: Any, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    conn(extra={"token_cache": path})
    lock()
    DingTalkConferenceHook().unlock_conference("sandbox-open")
    assert len(warnings_of(caplog)) == 1
    lock()
    assert bought(sandbox) == 2


def test_each_directory_that_cannot_be_used_costs_a_warning_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = [tmp_path / "one", tmp_path / "other"]
    for path in in_the_way:
        path.touch()
        for name in ("a.token", "b.ban"):
            SharedFile(path / name).write(b"content")
    said = warnings_of(caplog)
    assert len(said) == 2
    assert all(str(path) in warning for path, warning in zip(in_the_way, said, strict=True))


def test_a_read_only_directory_costs_the_sharing_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for parent in [*tmp_path.parents][:3]:
        if parent.stat().st_uid == os.geteuid() and not mode(parent) & 0o1000:
            parent.chmod(mode(parent) | 0o011)
    tmp_path.chmod(0o500)
    shelf = Shelf("the-secret", SharedFile(tmp_path / "a.token"))
    with as_ordinary_user(tmp_path):
        assert shelf.try_lock(), "who cannot lock does not wait"
        shelf.put(TOKEN)
        shelf.unlock()
        assert shelf.token(None, now=1_001) == TOKEN
        assert Shelf("the-secret", SharedFile(tmp_path / "a.token")).token(None, now=1_001) is None
    assert len(warnings_of(caplog)) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".token", ".lock"])
def test_a_directory_in_place_of_a_file_costs_no_call(
    lock: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    lock()
    file = token_file(directory).with_suffix(suffix)
    token_file(directory).unlink()
    file.unlink(missing_ok=True)
    (file / "inside").mkdir(parents=True)
    lock()
    assert bought(sandbox) == 2
    assert len(warnings_of(caplog)) == 1


def test_a_directory_swept_away_meanwhile_is_made_again(lock: Any, directory: Path, sandbox: Sandbox) -> None:
    lock()
    shutil.rmtree(directory)
    lock()
    lock()
    assert bought(sandbox) == 2


def test_a_file_is_replaced_in_one_step(private: Path) -> None:
    file = SharedFile(private / "file")
    contents = {bytes([letter]) * 50_000 for letter in b"abc"}
    file.write(b"a" * 50_000)
    done = threading.Event()

    def rewrite() -> None:
        for _ in range(50):
            for content in sorted(contents):
                file.write(content)
        done.set()

    found: set[bytes | None] = set()
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(rewrite)
        while not done.is_set() and not writing.done():
            found.add(file.read())
    writing.result()
    assert found <= contents
    assert len(found) > 1
    assert [*private.iterdir()] == [file.path], "nothing is left behind"


def test_what_could_not_be_written_is_not_outdone_by_an_older_file(
    lock: Any, directory: Path, sandbox: Sandbox
) -> None:
    """The disk fills up after the first token; DingTalk then refuses one token after the other."""
    lock()
    hook = DingTalkConferenceHook()
    old = token_file(directory)
    content = old.read_bytes()
    for _ in range(3):
        sandbox.revoke_tokens()
        hook.lock_conference("sandbox-open")
        old.write_bytes(content)
    hook.close()
    assert bought(sandbox) == 4


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
    file = SharedFile(private / "a.token")
    first = Shelf("the-secret", file)
    first.put(TOKEN)
    expected = TOKEN if usable else None
    assert first.token(None, now=1_000 + seconds) == expected
    assert Shelf("the-secret", file).token(None, now=1_000 + seconds) == expected


class Processes:
    """Some processes that share a file, and count the tokens they buy."""

    def __init__(self, path: Path, count: int = 5) -> None:
        self.bought = 0
        self._shelves = [Shelf("the-secret", SharedFile(path)) for _ in range(count)]

    def call(self, now: float, refused: Token | None = None) -> list[Token]:
        """Let each process in turn get a token, and buy one where there is none."""
        return [self._token(shelf, now, refused) for shelf in self._shelves]

    def _token(self, shelf: Shelf, now: float, refused: Token | None) -> Token:
        token = shelf.token(refused, now)
        if token is None:
            self.bought += 1
            token = Token(f"token-{self.bought}", now, LIFETIME)
            shelf.put(token)
        return token


@pytest.mark.parametrize("jump", [-(10**9), -86_400, -3_600, -1, 1, 3_600, 86_400, 10**9], ids="{:+}".format)
def test_a_clock_that_jumps_costs_at_most_one_token(private: Path, jump: float) -> None:
    processes = Processes(private / "a.token")
    now = 2e9
    processes.call(now)
    processes.call(now + jump)
    processes.call(now + jump + 3_000)
    assert processes.bought <= 2
    processes.call(now + jump + 7_000)
    processes.call(now + jump + 7_001)
    assert processes.bought <= 3, "and the renewal comes when it is due"


def test_a_clock_that_jumps_there_and_back_costs_a_token_for_each_jump(private: Path) -> None:
    processes = Processes(private / "a.token")
    for now in (1e9, 2e9, 1e9 + 10, 1e9 + 20):
        processes.call(now)
    assert processes.bought == 3


def test_a_refused_token_is_outdone_by_a_newer_one_alone(private: Path) -> None:
    processes = Processes(private / "a.token")
    (refused, *_) = processes.call(now=1_000)
    (newer, *_) = processes.call(now=1_100, refused=refused)
    assert processes.bought == 2
    assert set(processes.call(now=1_101, refused=refused)) == {newer}
    processes.call(now=1_102, refused=newer)
    assert processes.bought == 3, "the old one is not tried again"


def test_a_refused_token_is_outdone_by_what_was_bought_after_the_clock_went_back(private: Path) -> None:
    processes = Processes(private / "a.token")
    (refused, *_) = processes.call(now=1e9)
    processes.call(now=1e9 - 3_600, refused=refused)
    assert processes.bought == 2


def test_a_token_that_dingtalk_renewed_is_newer_though_its_value_is_the_same(private: Path) -> None:
    file = SharedFile(private / "a.token")
    renewed = replace(TOKEN, fetched_at=1_100)
    one, other = (Shelf("the-secret", file) for _ in range(2))
    one.put(TOKEN)
    assert other.token(None, now=1_001) == TOKEN
    one.put(renewed)
    assert other.token(TOKEN, now=1_101) == renewed


def test_a_ban_does_not_outlast_a_clock_that_went_back() -> None:
    ban = Ban(SETTINGS.base_url)
    ban.put(now=2e9, seconds=300)
    assert ban.seconds_left(now=2e9 + 1) == 299
    assert ban.seconds_left(now=1e9) == 0
    assert ban.seconds_left(now=3e9) == 0


# Threads and coroutines


def test_the_threads_and_coroutines_of_a_process_buy_one_token_together(conn: Any, sandbox: Sandbox) -> None:
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
    assert bought(sandbox) == 1
    assert len(sandbox.calls_of("lock")) == 39


def test_threads_whose_token_is_refused_buy_one_more_together(conn: Any, sandbox: Sandbox) -> None:
    conn(extra={"token_cache": False})
    hooks = [DingTalkConferenceHook() for _ in range(10)]
    hooks[0].lock_conference("sandbox-open")
    sandbox.revoke_tokens()
    with ThreadPoolExecutor(len(hooks)) as pool:
        assert all(pool.map(lambda hook: hook.lock_conference("sandbox-open"), hooks))
    for hook in hooks:
        hook.close()
    assert bought(sandbox) == 2
