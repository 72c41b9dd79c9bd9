"""``UnlockConferenceNotifier``: unlock a meeting that no unlock task reaches."""

from __future__ import annotations

from contextlib import closing
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseNotifier

from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.conferences import NAMES, check_given_name
from airflow_provider_dingconf.many import check_meetings, is_collection, meetings_in
from airflow_provider_dingconf.roll_back import is_unlocked, log_still_locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class UnlockConferenceNotifier(BaseNotifier):
    """Unlock a meeting when a run or a task fails, or a deadline passes.

    .. code-block:: python

        unlock = UnlockConferenceNotifier(conference_id="{{ params.conference_id }}")
        with DAG("release", dagrun_timeout=timedelta(hours=2), on_failure_callback=unlock):
            ...

    It covers what a teardown cannot: a run that reaches its ``dagrun_timeout``, an unlock that somebody marks
    as failed, and a lock that loses its worker at its last try. As ``on_failure_callback`` of a DAG or a
    task, it runs wherever Airflow runs callbacks. Deadline alerts (Airflow 3.1 and later) run it in the
    triggerer, which knows neither XComs nor ``params``: give the id itself, or a template of ``dag_run``.

    Give exactly one of the first three parameters. A meeting that has ended needs no unlock.

    :param conference_id: the meeting's conferenceId, a list of them, or the XCom of a lock by a template such
        as ``{{ ti.xcom_pull('lock') }}``, rendered as text or natively. (templated)
    :param room_code: the meeting's room code. The notifier unlocks the meeting that is running under it.
        (templated)
    :param schedule_conference_id: the scheduleConferenceId of a schedule. The notifier unlocks its running
        meeting. (templated)
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :raises InvalidInputError: not exactly one of the three is given; raised when the DAG is parsed.
    :raises DingTalkError: a meeting may still be locked; raised when Airflow calls the notifier.
    """

    template_fields: Sequence[str] = (*NAMES, "dingtalk_conn_id")

    def __init__(
        self,
        *,
        conference_id: Any = None,
        room_code: str | None = None,
        schedule_conference_id: str | None = None,
        dingtalk_conn_id: str = "dingtalk_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_meetings(conference_id)
        self.conference_id = conference_id
        self.room_code = room_code
        self.schedule_conference_id = schedule_conference_id
        self.dingtalk_conn_id = dingtalk_conn_id
        self.named_by = check_given_name({name: getattr(self, name) for name in NAMES})
        if getattr(self, self.named_by) is None:
            raise e.InvalidInputError(
                "conference_id: it is missing; give it, room_code or schedule_conference_id"
            )

    def __call__(self, *args: Any) -> None:
        """Render and unlock in a copy: one process may call a notifier for several tasks or runs."""
        super(UnlockConferenceNotifier, copy(self)).__call__(*args)

    def notify(self, context: Context) -> None:
        """Unlock, in the process that runs the callback."""
        from airflow_provider_dingconf.client.sync import run
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        meetings = self._given()
        if meetings != []:
            with closing(DingTalkConferenceHook(self.dingtalk_conn_id)) as hook:
                hook._connect()  # here: Airflow looks up connections only in the main thread
                run(partial(self._unlock, hook, meetings))

    async def async_notify(self, context: Context) -> None:
        """Unlock, in the triggerer."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        meetings = self._given()
        if meetings != []:
            await self._unlock(DingTalkConferenceHook(self.dingtalk_conn_id), meetings)

    def _given(self) -> list[str] | None:
        """Return the ids of the meetings to unlock; None if a room code or schedule names the meeting."""
        if self.named_by != "conference_id":
            return None
        meetings = meetings_in(None if self.conference_id == "None" else self.conference_id, "unlock")
        if meetings is None or meetings == []:
            self.log.info("Nothing to unlock: no lock has handed on a meeting that is or may be locked")
            return []
        return list(meetings) if is_collection(meetings) else [meetings]

    async def _unlock(self, hook: DingTalkConferenceHook, meetings: list[str] | None) -> None:
        try:
            async with hook:
                if meetings is None:
                    code: dict[str, Any] = {self.named_by: getattr(self, self.named_by)}
                    meetings = [(await hook.aget_conference(**code)).conference_id]
                results = await hook.aunlock_conferences(meetings)
        except (e.ConferenceClosedError, e.ConferenceNotRunningError) as error:
            self.log.info("Nothing to unlock: %s", error.summary)
            return
        left = {one.conference_id: one.error for one in results if one.error and not is_unlocked(one)}
        log_still_locked(left)
        if left:
            raise e.ConferencesError.of("unlock", left, len(results))
