"""``LockConferenceOperator``, ``UnlockConferenceOperator``, and the two around a section of a DAG.

A DAG file that imports this module imports neither the hook nor an HTTP library: the hook is made when
the task runs.
"""

from __future__ import annotations

from collections import ChainMap
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from airflow.providers.common.compat.sdk import BaseOperator, TaskGroup, conf
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.calls import LOCK_PAGE
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, InvalidInputError
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS, check_limits
from airflow_provider_dingconf.links import (
    LINKS_KEY,
    CallDocumentationLink,
    ErrorDocumentationLink,
    links_for,
)
from airflow_provider_dingconf.outcomes import Outcome, apply_outcome, check_on_error, outcome_of

try:
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy
except ImportError:  # Airflow before 3.3
    _DEFAULTS: dict[str, Any] = {}
else:
    _DEFAULTS = {"retry_policy": DingTalkRetryPolicy()}

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook, LockResult

WORKER_WAIT = 5.0
"""Seconds: a deferrable task waits no longer than this in its worker slot."""

TRIGGERER_WAIT = 3_600.0
"""Seconds: no task waits longer than this in the triggerer; Airflow's own ``retries`` then apply."""


_PARAMETERS = frozenset({"dingtalk_conn_id", "on_error", "max_attempts", "max_seconds", "deferrable"})


class _ConferenceOperator(BaseOperator):
    """What locking and unlocking have in common."""

    action: ClassVar[str]

    template_fields: Sequence[str] = ("conference_id", "dingtalk_conn_id")
    ui_color = "#1677ff"
    ui_fgcolor = "#ffffff"
    operator_extra_links = (CallDocumentationLink(), ErrorDocumentationLink())

    def __init__(
        self,
        *,
        conference_id: str,
        dingtalk_conn_id: str = "dingtalk_default",
        on_error: Mapping[str, Outcome | str] | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        max_seconds: float = MAX_SECONDS,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        kwargs["default_args"] = {**_DEFAULTS, **(kwargs.get("default_args") or {})}
        super().__init__(**kwargs)
        check_limits(max_attempts, max_seconds)
        self.conference_id = conference_id
        self.dingtalk_conn_id = dingtalk_conn_id
        self.on_error = check_on_error(on_error)
        self.max_attempts = max_attempts
        self.max_seconds = max_seconds
        self.deferrable = deferrable
        self._acting = False

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the operator with all but the mapped parameters: checked now, and named in the UI."""
        kwargs.setdefault("map_index_template", "{{ task.conference_id }}")
        own = kwargs.get("default_args") or {}
        for name in _PARAMETERS & own.keys():  # Airflow takes nothing from there but what every operator has
            kwargs.setdefault(name, own[name])
        made = super().partial(**kwargs)
        outer = [made.kwargs.get(name) for name in ("dag", "task_group")]
        given = dict(ChainMap(made.kwargs, *(each.default_args for each in reversed(outer) if each)))
        check_on_error(given.get("on_error"))
        check_limits(given.get("max_attempts", MAX_ATTEMPTS), given.get("max_seconds", MAX_SECONDS))
        for name in _DEFAULTS.keys() - kwargs.keys():  # Airflow has put a default of its own there
            made.kwargs[name] = made.kwargs.get(name) or _DEFAULTS[name]
        return made

    def execute(self, context: Context) -> LockResult:
        """Make the call, and give the task the state that belongs to how it ended."""
        return self._act(context, attempts=0)

    def resume(self, context: Context, event: Any = None, attempts: int = 0) -> LockResult:
        """Make the call again after a wait in the triggerer.

        :param event: what the trigger says; that the wait is over.
        :param attempts: how often the call was tried before.
        """
        return self._act(context, attempts)

    def on_kill(self) -> None:
        """End the call that is being made; the hook undoes a lock that it may have made.

        :raises SystemExit: a call is being made. Airflow 3 would let it run on.
        """
        if self._acting:
            raise SystemExit(f"{self.action} was interrupted")

    def _act(self, context: Context, attempts: int) -> LockResult:
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        hook = DingTalkConferenceHook(
            self.dingtalk_conn_id,
            max_attempts=self.max_attempts - attempts,
            max_seconds=self.max_seconds,
            max_wait=WORKER_WAIT if self.deferrable else None,
        )
        self._acting = True
        try:
            result = hook.act(self.action, self.conference_id)
        except DingTalkError as error:
            error.attempts += attempts
            self._push_links(context, hook, error)
            self._defer_the_wait(error)
            self.log.warning("%s", error)
            apply_outcome(error, self.on_error)
            return {
                "conference_id": self.conference_id,
                "action": self.action,
                "success": False,
                "attempts": error.attempts,
                "request_id": error.request_id,
            }
        finally:
            self._acting = False
            hook.close()
        self._push_links(context, hook, None)
        result["attempts"] += attempts
        return result

    def _push_links(
        self, context: Context, hook: DingTalkConferenceHook, error: DingTalkError | None
    ) -> None:
        if isinstance(error, InvalidInputError):
            return  # no call was made
        links = links_for(hook.settings.base_url, LOCK_PAGE, error)
        context["ti"].xcom_push(key=LINKS_KEY, value=links)

    def _defer_the_wait(self, error: DingTalkError) -> None:
        """Leave the worker for a long wait, if the call is to be tried again after it."""
        wait = error.retry_after or 0.0
        if (
            self.deferrable
            and WORKER_WAIT < wait <= TRIGGERER_WAIT
            and error.attempts < self.max_attempts
            and outcome_of(error, self.on_error) is Outcome.RETRY
        ):
            from airflow.providers.common.compat.standard.triggers import TimeDeltaTrigger

            self.log.info("%s; waiting %.0f s in the triggerer", error.summary, wait)
            self.defer(
                trigger=TimeDeltaTrigger(timedelta(seconds=wait)),
                method_name="resume",
                kwargs={"attempts": error.attempts},
            )


class LockConferenceOperator(_ConferenceOperator):
    """Lock a DingTalk video meeting: no one can join it any more.

    .. code-block:: python

        lock = LockConferenceOperator(task_id="lock", conference_id="{{ params.conference_id }}")

    The task's XCom is a dict of ``conference_id``, ``action``, ``success``, ``attempts`` and ``request_id``.
    What becomes of the task when DingTalk refuses is a matter of the error code: see
    :data:`~airflow_provider_dingconf.dingtalk.errors.ERRORS`.
    Source: `Lock a meeting <https://help.dingtalk.io/open/development/api-lockconference>`__.

    :param conference_id: the meeting's conferenceId; not its room code. (templated)
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code, in place of the defaults, such as ``{"confClosed": "fail"}``.
    :param max_attempts: attempts of the call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of the call in all, the waits between attempts included; for a deferrable
        task, those in a worker slot.
    :param deferrable: whether a long wait is left to the triggerer; the call is made in the worker.
        Airflow's ``[operators] default_deferrable`` by default.
    :param retry_policy: Airflow 3.3's; :class:`~airflow_provider_dingconf.retry_policies.DingTalkRetryPolicy`
        by default, so that a throttled or banned call is retried when DingTalk said.
    :raises InvalidInputError: ``on_error`` or a limit is wrong; when the DAG is parsed.
    :raises AirflowFailException: the outcome of the error is FAIL.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """

    action = "lock"


class UnlockConferenceOperator(_ConferenceOperator):
    """Unlock a DingTalk video meeting: people can join it again.

    Parameters, XCom and errors are those of :class:`LockConferenceOperator`.
    """

    action = "unlock"


class LockedSection(NamedTuple):
    """The two tasks around a locked section."""

    lock: LockConferenceOperator
    unlock: UnlockConferenceOperator


@contextmanager
def conference_lock(
    conference_id: str, *, name: str = "conference", group_id: str | None = None, **kwargs: Any
) -> Iterator[LockedSection]:
    """Make a locked section of a DAG: the tasks of the block run while the meeting is locked.

    .. code-block:: python

        with conference_lock("{{ params.conference_id }}"):
            build() >> deploy()

    The lock is the section's setup and the unlock its teardown, in Airflow's sense: the unlock runs whether
    the work succeeds or fails, and clearing the work clears both. The DAG run fails when the work fails, and
    when the unlock does; for the latter there is an empty task ``<unlock>_done``, which needs no worker.

    :param conference_id: the meeting's conferenceId. (templated)
    :param name: makes the tasks' ids, ``lock_<name>`` and ``unlock_<name>``.
    :param group_id: puts the section into a task group of this id; None for no group.
    :param kwargs: any other parameter of the two operators.
    """
    with TaskGroup(group_id) if group_id else nullcontext():
        lock = LockConferenceOperator(task_id=f"lock_{name}", conference_id=conference_id, **kwargs)
        unlock = UnlockConferenceOperator(task_id=f"unlock_{name}", conference_id=conference_id, **kwargs)
        with unlock.as_teardown(setups=lock):
            yield LockedSection(lock, unlock)
    # Not on_failure_fail_dagrun: the unlock would then be the only end that counts, and a run whose work
    # failed would be a success. In the root group, for what follows the section is to wait for the work.
    unlock >> _empty_operator()(
        task_id=f"{unlock.task_id}_done", trigger_rule="none_failed", task_group=unlock.dag.task_group
    )


def _empty_operator() -> type[BaseOperator]:
    if TYPE_CHECKING or AIRFLOW_V_3_0_PLUS:
        from airflow.providers.standard.operators.empty import EmptyOperator
    else:
        from airflow.operators.empty import EmptyOperator
    return EmptyOperator  # noqa: AIR312 - the old place is for Airflow 2 alone
