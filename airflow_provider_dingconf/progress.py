"""What a task has settled of many meetings, so that its retry does not ask for it again.

Airflow empties a task's XComs before a retry. Airflow 3.3 has a store for the state of a task; before, it is
a file beside those that share the access tokens, which a retry finds on the same host only. Elsewhere it asks
again for what is done, which costs calls and changes nothing.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol, cast

from airflow_provider_dingconf.token_store import shared_file

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.connection import Settings
    from airflow_provider_dingconf.token_store import SharedFile

SAVE_SECONDS = 2.0
"""Between two saves, while meetings are being settled."""

CHUNK = 200
"""Meetings in one entry of the store: Airflow warns of an entry over 64 KiB."""


class _Store(Protocol):
    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def delete(self, key: str) -> None: ...


class Progress:
    """What is settled of one task.

    :param store: where it is kept.
    :param life: of the task: what was settled before it was cleared is not settled any more.
    """

    def __init__(self, store: _Store, life: str) -> None:
        self._store, self._life = store, life
        self._new: list[dict[str, Any]] = []
        self._chunks = 0
        self._saved = time.monotonic()

    def load(self) -> list[dict[str, Any]]:
        """Return what earlier tries of the task have settled."""
        settled: list[dict[str, Any]] = []
        while isinstance(chunk := self._store.get(self._key(self._chunks)), list):
            settled += chunk
            self._chunks += 1
        return settled

    def add(self, result: dict[str, Any]) -> None:
        """Take note of a meeting that is settled."""
        self._new.append(result)
        if len(self._new) >= CHUNK or time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Keep what was noted."""
        if self._new:
            self._store.set(self._key(self._chunks), self._new)
            self._new = []
            self._chunks += 1
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Forget all of it."""
        for number in range(self._chunks):
            self._store.delete(self._key(number))
        self._chunks = 0

    def _key(self, number: int) -> str:
        return f"dingconf_settled_{self._life}_{number}"


class _Nowhere:
    def get(self, key: str) -> None:
        return None

    def set(self, key: str, value: Any) -> None:
        return

    def delete(self, key: str) -> None:
        return


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
        # There is one: without, progress_of has another store.
        return cast("SharedFile", shared_file(self._settings, f"{name}.progress"))


def progress_of(context: Context, settings: Settings) -> Progress:
    """Return what is settled of the task that runs.

    :param context: the task's.
    :param settings: of the connection, whose ``token_cache`` says where files go.
    """
    ti = context.get("ti")
    store: _Store = _Nowhere()
    if "task_state_store" in context:
        store = context["task_state_store"]
    elif ti is not None and settings.token_cache is not False:
        store = _Files(settings, json.dumps([ti.dag_id, ti.run_id, ti.task_id, ti.map_index]))
    # Clearing a task raises its max_tries.
    return Progress(store, str(getattr(ti, "max_tries", 0)))
