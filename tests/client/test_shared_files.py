"""The files that processes share: for their owner alone, worthless without the secret, never an obstacle.

A process that has forgotten all plays a new one; real ones are in ``test_token_sharing``.
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
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_1_PLUS

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.shared_files import SharedFile, default_directory
from airflow_provider_dingconf.client.token_cache import (
    SuiteTicket,
    TokenCache,
    address_ban_of,
    suite_ticket_of,
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
    found_of_all,
    give_away,
    let_others_enter,
    mode,
    put_all,
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
def test_the_files_are_readable_by_their_owner_alone(umask: int) -> None:
    before = os.umask(umask)
    try:
        put_all(SETTINGS)
    finally:
        os.umask(before)
    directory, files = default_directory(), list(default_directory().iterdir())
    assert (mode(directory), directory.stat().st_uid) == (0o700, os.geteuid())
    assert {file.suffix for file in files} == {".token", ".lock", ".ticket", ".ban", ".events"}
    assert {(mode(file), file.stat().st_uid) for file in files} == {(0o600, os.geteuid())}
    token_cache.forget()
    assert found_of_all(SETTINGS) == [True] * 4


@pytest.mark.parametrize("kind", ["internal", "third_party", "unified"])
def test_the_files_say_nothing_in_the_clear_and_nor_do_their_names(
    lock: Any, conn: Any, sandbox: Sandbox, kind: Any
) -> None:
    conn(kind)
    lock()
    suite_ticket_of(DingTalkConferenceHook().settings).put(sandbox.suite_ticket, 1.0)
    (call,) = sandbox.calls_of("lock")
    fields = sandbox.connection(kind)
    secrets = [call.header("x-acs-dingtalk-access-token"), fields["password"], fields["login"]]
    secrets += [sandbox.corp_id, sandbox.suite_ticket, "127.0.0.1", str(sandbox.port), "accessToken"]
    for file in default_directory().iterdir():
        shown = file.name.encode() + b" " + file.read_bytes()
        assert not [secret for secret in secrets if str(secret).encode() in shown]


def test_a_stolen_file_is_worth_nothing_without_the_secret(tmp_path: Path) -> None:
    put_all(replace(SETTINGS, token_cache=str(tmp_path / "cache")))
    token, ticket = (SharedFile(*(tmp_path / "cache").glob(f"*.{kind}")) for kind in ("token", "ticket"))

    def found(secret: str) -> list[Any]:
        value = TokenCache(secret, token).get(None, time.monotonic())
        return [value and value.value, SuiteTicket(secret, ticket).pushed]

    assert found("the-secret") == ["the-token", "the-ticket"]
    for known in ("", "the-id", "dingcorp", SETTINGS.base_url, token.path.stem, "The-secret", "the-secret ",
                  "the-secre"):  # fmt: skip
        assert found(known) == [None, None]


# Files that are not as they should be


def with_content(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Return a function that changes the content of a file."""
    return lambda file: file.write_bytes(change(file.read_bytes()))


REFUSED: dict[str, Callable[[Path], object]] = {
    "readable by others": lambda file: file.chmod(0o640),
    "writable by others": lambda file: file.chmod(0o602),
    "someone else's": give_away,
    "a symbolic link": lambda file: file.symlink_to(file.rename(file.with_name("elsewhere"))),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file, 0o600)),
}
FORGED = json.dumps({"value": "forged", "fetched_at": 0, "lifetime": None}).encode()
DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": with_content(lambda _: b""),
    "one byte": with_content(lambda content: content[:1]),
    "salt alone": with_content(lambda content: content[:16]),
    "half": with_content(lambda content: content[: len(content) // 2]),
    "last byte lost": with_content(lambda content: content[:-1]),
    "first bit": with_content(lambda content: bytes([content[0] ^ 1]) + content[1:]),
    "a bit in the middle": with_content(lambda old: old[:60] + bytes([old[60] ^ 4]) + old[61:]),
    "zeros": with_content(lambda content: bytes(len(content))),
    "text": with_content(lambda _: b"a shopping list, and no more than that"),
    "json": with_content(lambda _: FORGED),
    "much": with_content(lambda _: b"A" * 10**7),
    "bytes": with_content(lambda _: bytes(range(256))),
    "deleted with its directory": lambda file: shutil.rmtree(file.parent),
}


@pytest.mark.parametrize("spoil", (REFUSED | DAMAGED).values(), ids=REFUSED | DAMAGED)
def test_a_file_that_is_damaged_or_not_its_users_alone_is_no_token_and_is_replaced(
    lock: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    lock()
    content = token_file(directory).read_bytes()
    spoil(token_file(directory))
    lock()
    assert fetched(sandbox) == 2
    lock()
    assert fetched(sandbox) == 2, "the new file is shared again"
    assert "forged" not in [call.header("x-acs-dingtalk-access-token") for call in sandbox.calls_of("lock")]
    found = token_file(directory).lstat()
    assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)) == (stat.S_IFREG, 0o600)
    assert found.st_uid == os.geteuid()
    for linked in directory.glob("elsewhere"):
        assert linked.read_bytes() == content, "what a link leads to is left alone"
    warnings = warnings_of(caplog)
    assert len(warnings) == (spoil in REFUSED.values())
    for warning in warnings:
        assert f"{directory.name!r} in {str(directory.parent)!r}" in warning
        assert "token_cache" in warning


def moved(path: Path) -> Path:
    """Return where something was, which is moved away."""
    return Path(shutil.move(path, path.with_name("elsewhere"))).with_name(path.name)


def replace_by_directory(file: Path) -> None:
    file.unlink(missing_ok=True)
    (file / "inside").mkdir(parents=True)


UNUSABLE: dict[str, str | Callable[[Path], object]] = {
    "readable by others": lambda directory: directory.chmod(0o750),
    "open to others": lambda directory: directory.chmod(0o701),
    "someone else's": give_away,
    "a symbolic link": lambda directory: moved(directory).symlink_to(directory.with_name("elsewhere")),
    "a link to nowhere": lambda directory: moved(directory).symlink_to("nowhere"),
    "a file": lambda directory: moved(directory).touch(0o600),
    "with a directory as the token": lambda directory: replace_by_directory(token_file(directory)),
    "below a file": "/dev/null/cache",
    "where nobody, root included, makes a directory": "/proc/airflow-provider-dingconf/cache",
    "with too long a name": "/" + "x" * 300,
}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE)
def test_a_directory_that_cannot_be_used_costs_the_sharing_and_one_warning_and_never_a_call(
    lock: Any, conn: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    lock()
    conn(extra={"token_cache": spoil}) if isinstance(spoil, str) else spoil(directory)
    kept = {file: file.read_bytes() for file in directory.parent.rglob("*.token") if file.is_file()}
    lock()
    assert fetched(sandbox) == 2, "the token in it is not used"
    DingTalkConferenceHook().unlock_conference("sandbox-open")
    assert fetched(sandbox) == 2, "in memory it is still shared"
    assert len(warnings_of(caplog)) == 1
    lock()
    assert fetched(sandbox) == 3
    found = {file: file.read_bytes() for file in directory.parent.rglob("*.token") if file.is_file()}
    assert found == kept, "nothing is put there"


def test_a_directory_in_place_of_the_lock_costs_one_warning_and_no_call(
    lock: Any, directory: Path, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    lock()
    replace_by_directory(token_file(directory).with_suffix(".lock"))
    token_file(directory).unlink()
    lock()
    assert fetched(sandbox) == 2
    assert len(warnings_of(caplog)) == 1


def test_each_unusable_directory_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "other"):
        (tmp_path / name).touch()
        for file in ("a.token", "b.ban"):
            SharedFile(tmp_path / name / file).write(b"content")
    one, other = warnings_of(caplog)
    assert "'one'" in one
    assert "'other'" in other


def test_a_read_only_directory_costs_the_sharing_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    let_others_enter(tmp_path)
    tmp_path.chmod(0o500)
    cache, another = (TokenCache("the-secret", SharedFile(tmp_path / "a.token")) for _ in range(2))
    with as_ordinary_user(tmp_path):
        began = time.monotonic()
        asyncio.run(put_while_fetching(cache, TOKEN))
        assert time.monotonic() - began < 5, "a cache that cannot lock does not wait"
        assert cache.get(None, time.monotonic()) == TOKEN
        assert another.get(None, time.monotonic()) is None
    assert len(warnings_of(caplog)) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "file")
    contents = [bytes([letter]) * 50_000 for letter in b"abc"]
    file.write(contents[0])
    done = threading.Event()

    def rewrite() -> None:
        for _ in range(50):
            for content in contents:
                file.write(content)
        done.set()

    found: set[bytes | None] = set()
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(rewrite)
        while not done.is_set() and not writing.done():
            found.add(file.read())
    writing.result()
    assert found <= set(contents)
    assert len(found) > 1
    assert [*tmp_path.iterdir()] == [file.path], "nothing is left behind"


def test_an_older_file_does_not_replace_a_token_that_could_not_be_written(
    lock: Any, directory: Path, sandbox: Sandbox
) -> None:
    """Nothing can be written after the first token; DingTalk then refuses one token after the other."""
    lock()
    content = token_file(directory).read_bytes()
    directory.chmod(0o500)
    let_others_enter(directory.parent)
    with as_ordinary_user(directory, *directory.iterdir()), closing(DingTalkConferenceHook()) as hook:
        for _ in range(3):
            sandbox.revoke_tokens()
            hook.lock_conference("sandbox-open")
    assert fetched(sandbox) == 4
    assert token_file(directory).read_bytes() == content


# What Airflow masks


def test_airflow_masks_the_client_secret_and_the_token(sandbox: Sandbox, conn: Any) -> None:
    with closing(DingTalkConferenceHook()) as hook:
        hook.lock_conference("sandbox-open")
    token = sandbox.calls_of("lock")[0].header("x-acs-dingtalk-access-token")
    assert token
    for secret in (Sandbox.client_secret, token):
        assert redact(f"as in {secret} here") == "as in *** here"


def test_the_warning_and_the_ban_show_the_directory_though_airflow_masks_its_path(
    conn: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "dingconf"
    directory.touch()
    conn(extra={"token_cache": str(directory)})
    hook = DingTalkConferenceHook()
    mask_secret(hook.get_connection(hook.dingtalk_conn_id).extra_dejson)  # as Airflow does, by the names
    assert redact(f"as in {directory}/a.ban") == "as in ***/a.ban"
    token_cache_of(hook.settings).put(TOKEN, now=1_000)
    (warning,) = warnings_of(caplog)
    shown = f"directory 'dingconf' in {str(tmp_path)!r}"
    assert f"the {shown} cannot be used" in redact(warning)
    assert f"of the {shown}" in redact(str(address_ban_of(hook.settings).file))
