"""What a task has settled of many meetings, so that its retry does not ask for it again.

Airflow empties a task's XComs before a retry. Airflow 3.3 has a store for the state of a task; before, it is
a file beside those that share the access tokens, which a retry finds on the same host only. Elsewhere, and
where the store is out of order, a retry asks again for what is done, which costs calls and changes nothing.
"""

from __future__ import annotations

import json
import logging
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol, cast

from airflow_provider_dingconf.client.token_cache import shared_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.client.shared_files import SharedFile

SAVE_SECONDS = 2.0
"""Between two saves, while meetings are being settled."""

ENTRY_CHARACTERS = 30_000
"""In one entry, about, when it is saved: Airflow warns of one over 64 KiB, and no file of more is read."""

log = logging.getLogger(__name__)


class _Store(Protocol):
    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def delete(self, key: str) -> None: ...


class Progress:
    """What is settled of one task.

    :param store: where it is kept; None for nowhere.
    :param life: of the task: what was settled before it was cleared, or at another DingTalk, is not settled.
    """

    def __init__(self, store: _Store | None, life: str) -> None:
        self._store, self._life, self._failed = store, life, False
        self._new: list[dict[str, Any]] = []
        self._characters = self._entries = 0
        self._saved = time.monotonic()

    def load(self) -> list[dict[str, Any]]:
        """Return what earlier tries of the task have settled."""
        settled: list[dict[str, Any]] = []
        while isinstance(entry := self._asked(lambda store: store.get(self._key(self._entries))), list):
            settled += entry
            self._entries += 1
        return settled

    def add(self, result: dict[str, Any]) -> None:
        """Take note of a meeting that is settled."""
        self._new.append(result)
        self._characters += len(json.dumps(result))
        if self._characters >= ENTRY_CHARACTERS or time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Keep what was noted."""
        if self._new:
            self._asked(lambda store: store.set(self._key(self._entries), self._new))
            self._new, self._characters = [], 0
            self._entries += 1
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Forget all of it."""
        for key in map(self._key, range(self._entries)):  # the first first: without it, no other is read
            self._asked(lambda store, key=key: store.delete(key), always=True)
        self._new, self._characters, self._entries = [], 0, 0

    def _asked(self, do: Callable[..., Any], *, always: bool = False) -> Any:
        """Return what the store answers; None where it fails: the meetings come first.

        :param always: whether to ask it even where it has failed before.
        """
        if self._store is None or (self._failed and not always):
            return None
        try:
            return do(self._store)
        except Exception as error:  # whatever Airflow's raises
            if not self._failed:
                log.warning("What is settled is kept no more; a retry may ask for it again: %s", error)
            self._failed = True
            return None

    def _key(self, number: int) -> str:
        return f"dingconf_settled_{self._life}_{number}"


class _Files:
    """The files of one task."""

    def __init__(self, settings: Settings, task: str) -> None:
        self._settings, self._task = settings, task

    def get(self, key: str) -> Any:
        try:
            return json.loads(self._file(key).read() or b"null")
        except ValueError:
            return None

    def set(self, key: str, value: Any) -> None:
        self._file(key).write(json.dumps(value).encode())

    def delete(self, key: str) -> None:
        self._file(key).remove()

    def _file(self, key: str) -> SharedFile:
        name = sha256(f"{self._task} {key}".encode()).hexdigest()
        # There is one: without, progress_of has no store.
        return cast("SharedFile", shared_file(self._settings, f"{name}.progress"))


def progress_of(context: Context, settings: Settings, *, resumed: bool) -> Progress:
    """Return what is settled of the task that runs.

    :param context: the task's.
    :param settings: of the connection, whose ``token_cache`` says where files go.
    :param resumed: whether the try goes on after a wait in the triggerer.
    """
    ti = context.get("ti")
    store: _Store | None = None
    if "task_state_store" in context:
        store = context["task_state_store"]
    elif ti is not None and settings.token_cache is not False:
        store = _Files(settings, json.dumps([ti.dag_id, ti.run_id, ti.task_id, ti.map_index]))
    # Clearing a task raises its max_tries.
    life = [getattr(ti, "max_tries", 0), settings.base_url, settings.app and settings.app.client_id]
    progress = Progress(store, sha256(json.dumps(life).encode()).hexdigest()[:16])
    if ti is not None and isinstance(store, _Files) and ti.try_number <= 1 and not resumed:
        progress.load()
        progress.clear()  # it is left of an earlier run of the same id, which was killed
    return progress
