"""The meetings that a task has completed: its retry does not lock or unlock them again.

Airflow empties a task's XComs before a retry. From 3.3 on it has a store for the state of a task; before, or
if the store fails, a retry asks again for completed meetings, which costs calls and changes nothing.
"""

from __future__ import annotations

import json
import logging
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.client.settings import Settings

SAVE_SECONDS = 2.0
"""Between two saves."""

ENTRY_RESULTS = 50
"""In one entry, at most: Airflow warns of one over 64 KiB."""

log = logging.getLogger(__name__)


class CompletedMeetings:
    """The results of the meetings that need no further call.

    :param context: the task's.
    :param settings: the connection's: results of another DingTalk do not count.
    """

    def __init__(self, context: Context, settings: Settings) -> None:
        self._store: Any = context.get("task_state_store")
        # If the task is cleared, Airflow raises max_tries: then all is asked for again.
        life = [getattr(context.get("ti"), "max_tries", 0), settings.base_url]
        life.append(settings.app and settings.app.client_id)
        self._life = sha256(json.dumps(life).encode()).hexdigest()[:16]
        self._new: list[dict[str, Any]] = []
        self._entries = 0
        self._saved = time.monotonic()

    def load(self) -> list[dict[str, Any]]:
        """Return the results that earlier tries of the task have saved."""
        found: list[dict[str, Any]] = []
        while entry := self._ask("get", self._entries):
            found += entry
            self._entries += 1
        return found

    def add(self, result: dict[str, Any]) -> None:
        """Note a result, and save now and then."""
        self._new.append(result)
        if len(self._new) >= ENTRY_RESULTS or time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save the results that were noted."""
        if self._new:
            self._ask("set", self._entries, self._new)
            self._new = []
            self._entries += 1
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Delete all of them."""
        for number in range(self._entries):  # the first one first: without it, none is read
            self._ask("delete", number)
        self._entries = 0

    def _ask(self, method: str, number: int, *values: Any) -> Any:
        """Return what the store returns; None if there is none, or it has failed: the meetings come first."""
        if self._store is None:
            return None
        try:
            return getattr(self._store, method)(f"dingconf_completed_{self._life}_{number}", *values)
        except Exception as error:  # whatever Airflow raises
            log.warning("Completed meetings are no longer saved; a retry asks for them again: %s", error)
            self._store = None
