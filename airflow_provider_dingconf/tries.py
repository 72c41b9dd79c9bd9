"""``Try``: a process finds out whether Airflow has begun another try of the task that it executes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import get_current_context

if TYPE_CHECKING:
    from typing_extensions import Self

TRY_KEY = "dingtalk_lock_try"
"""The XCom by which a try finds that out."""

log = logging.getLogger(f"airflow.task.{__name__}")  # below the logger of a task, as its own


class Try:
    """One try of a task, in the process that executes it.

    Airflow deletes a task's XComs when it begins another try: the XCom that is pushed here tells a frozen
    process that thaws, or one that outlived its scheduler, that its successor has locked the meetings.

    :param ti: Airflow's task instance; None if Airflow gave none, and no other try is found out.
    """

    def __init__(self, ti: Any) -> None:
        self.unlocks = 0
        """The meetings that are about to be unlocked, which is logged unless the try is superseded."""
        self._ti = ti
        self._name = f"{socket.gethostname()} {os.getpid()}"  # one for all blocks of the process
        if ti is not None:
            ti.xcom_push(key=TRY_KEY, value=self._name)

    @classmethod
    def current(cls) -> Self | None:
        """Return the try that this process executes; None outside a task."""
        try:
            ti = get_current_context()["ti"]
        except Exception:  # another one in each version of Airflow
            return None
        return cls(ti)

    async def is_superseded(self) -> bool:
        """Return whether Airflow has begun another try; if Airflow does not say so in time, it has not."""
        from airflow_provider_dingconf.client.http import within
        from airflow_provider_dingconf.client.sync import CLEAN_UP_SECONDS

        with suppress(asyncio.TimeoutError):
            if await within(asyncio.to_thread(self._is_superseded), CLEAN_UP_SECONDS / 2):
                log.warning("Airflow has begun another try of this task: nothing is rolled back")
                return True
        if self.unlocks:
            log.warning("Rolling back: unlocking %d meetings that are or may be locked", self.unlocks)
        return False

    def _is_superseded(self) -> bool:
        # Twice: if a request of the task's was interrupted, Airflow 3 responds to that one first.
        return all(self._is_other() for _ in range(2))

    def _is_other(self) -> bool:
        ti = self._ti
        try:
            found = ti.xcom_pull(task_ids=ti.task_id, key=TRY_KEY, map_indexes=ti.map_index)
        except Exception as error:
            detail = getattr(getattr(error, "error", None), "detail", None) or {}
            return detail.get("status_code") in {401, 403}  # the try's own token has expired
        return bool(found != self._name)
