"""``Try``: a process finds out whether Airflow has begun another try of the task that it executes."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import get_current_context

if TYPE_CHECKING:
    from typing_extensions import Self

TRY_KEY = "dingtalk_lock_try"
"""The XCom by which a try finds that out."""

SUPERSEDED = "Airflow has begun another try of this task: nothing is rolled back"


class Try:
    """One try of a task, in the process that executes it.

    Airflow deletes a task's XComs when it begins another try: the XCom that is pushed here tells a frozen
    process that thaws, or one that outlived its scheduler, that its successor has locked the meetings.

    :param ti: Airflow's task instance.
    """

    def __init__(self, ti: Any) -> None:
        self._ti = ti
        self._name = f"{socket.gethostname()} {os.getpid()}"  # one for all blocks of the process
        ti.xcom_push(key=TRY_KEY, value=self._name)

    @classmethod
    def current(cls) -> Self | None:
        """Return the try that this process executes; None outside a task."""
        try:
            ti = get_current_context()["ti"]
        except Exception:  # another one in each version of Airflow
            return None
        return cls(ti)

    def is_superseded(self) -> bool:
        """Return whether Airflow has begun another try; if it cannot be asked, it counts as not."""
        ti = self._ti
        try:
            found = ti.xcom_pull(task_ids=ti.task_id, key=TRY_KEY, map_indexes=ti.map_index)
        except BaseException as error:  # an interruption, too: what is locked comes first
            detail = getattr(getattr(error, "error", None), "detail", None) or {}
            return detail.get("status_code") in {401, 403}  # the try's own token has expired
        return bool(found != self._name)
