"""The files that processes share: for their owner alone, worthless without the secret, never in the way.

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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_1_PLUS

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.shared_files import SharedFile, default_directory
from airflow_provider_dingconf.client.token_cache import (
    TokenCache,
    address_ban_of,
    token_cache_of,
)
from airflow_provider_dingconf.compat import mask_secret
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox
from client.files import (
    SETTINGS,
    TOKEN,
    as_ordinary_user,
    fetched,
    give_away,
    let_others_enter,
    mode,
    put_while_fetching,
    replace,
    token_file,
    warnings_of,
)

if AIRFLOW_V_3_1_PLUS:
    from airflow.sdk.log import redact
elif AIRFLOW_V_3_0_PLUS:
    from airflow.sdk.execution_time.secrets_masker import redact
else:
    from airflow.utils.log.secrets_masker import redact


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


def test_a_ban_is_remembered_in_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    settings = replace(SETTINGS, token_cache=str(tmp_path / "cache"))
    address_ban_of(settings).put(now=1_000, seconds=300)
    (file,) = (tmp_path / "cache").iterdir()
    assert (mode(file.parent), mode(file)) == (0o700, 0o600)
    token_cache.forget()
    assert 299 < address_ban_of(settings).seconds_left(now=1_000) <= 300


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
    token_cache_of(replace(SETTINGS, token_cache=str(tmp_path / "cache"))).put(TOKEN)
    file = SharedFile(token_file(tmp_path / "cache"))
    assert TokenCache("the-secret", file).get(None, now=1_001) == TOKEN
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
    assert [TokenCache(guess, file).get(None, now=1_001) for guess in known] == [None] * len(known)


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
    assert fetched(sandbox) == 2
    (warning,) = warnings_of(caplog)
    assert f"{directory.name!r} in {str(directory.parent)!r}" in warning
    assert "token_cache" in warning
    lock()
    assert fetched(sandbox) == 2, "the new file is shared again"
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
    assert fetched(sandbox) == 1, "in memory it is still shared"
    lock()
    assert fetched(sandbox) == 2
    assert not [*directory.parent.rglob("*.token")], "nothing is put there"


def test_a_token_in_a_directory_that_became_someone_elses_is_not_used(
    lock: Any, directory: Path, sandbox: Sandbox
) -> None:
    lock()
    give_away(directory)
    lock()
    assert fetched(sandbox) == 2


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
    assert fetched(sandbox) == 2
    assert "forged" not in [call.header("x-acs-dingtalk-access-token") for call in sandbox.calls_of("lock")]
    lock()
    assert fetched(sandbox) == 2, "it was replaced"
    assert not warnings_of(caplog)


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
    assert fetched(sandbox) == 2


def test_each_directory_that_cannot_be_used_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = [tmp_path / "one", tmp_path / "other"]
    for path in in_the_way:
        path.touch()
        for name in ("a.token", "b.ban"):
            SharedFile(path / name).write(b"content")
    said = warnings_of(caplog)
    assert len(said) == 2
    assert all(repr(path.name) in warning for path, warning in zip(in_the_way, said, strict=True))


def test_a_read_only_directory_costs_the_sharing_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    let_others_enter(tmp_path)
    tmp_path.chmod(0o500)
    cache = TokenCache("the-secret", SharedFile(tmp_path / "a.token"))
    with as_ordinary_user(tmp_path):
        began = time.monotonic()
        asyncio.run(put_while_fetching(cache, TOKEN))
        assert time.monotonic() - began < 5, "a cache that cannot lock does not wait"
        assert cache.get(None, now=1_001) == TOKEN
        assert TokenCache("the-secret", SharedFile(tmp_path / "a.token")).get(None, now=1_001) is None
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
    assert fetched(sandbox) == 2
    assert len(warnings_of(caplog)) == 1


def test_a_directory_swept_away_meanwhile_is_made_again(lock: Any, directory: Path, sandbox: Sandbox) -> None:
    lock()
    shutil.rmtree(directory)
    lock()
    lock()
    assert fetched(sandbox) == 2


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
    assert fetched(sandbox) == 4


# What Airflow masks


def test_the_warning_and_the_ban_show_the_directory_though_airflow_masks_its_path(
    conn: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "dingconf"
    directory.touch()
    conn(extra={"token_cache": str(directory)})
    hook = DingTalkConferenceHook()
    mask_secret(hook.get_connection(hook.dingtalk_conn_id).extra_dejson)  # as Airflow does, by the names
    assert redact(f"as in {directory}/a.ban") == "as in ***/a.ban"
    token_cache_of(hook.settings).put(TOKEN)
    (warning,) = warnings_of(caplog)
    assert f"the directory 'dingconf' in {str(tmp_path)!r} cannot be used" in redact(warning)
    assert f"of the directory 'dingconf' in {str(tmp_path)!r}" in redact(
        str(address_ban_of(hook.settings).file)
    )
