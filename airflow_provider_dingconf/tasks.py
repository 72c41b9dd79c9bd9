"""``DingTalkTask``: what the operators and the sensor have in common.

The links of a task, the names of mapped tasks, parameters out of ``default_args``, and the task state that an
error ends in. ``CallingTask`` adds what the operators share: the hook, the limits of a call, and its end when
the task is killed.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.errors import ConferencesError, InvalidInputError
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS, check_limits
from airflow_provider_dingconf.links import (
    CallDocumentationLink,
    ErrorDocumentationLink,
    JoinConferenceLink,
    keep_links,
    links_for,
)
from airflow_provider_dingconf.outcomes import apply_outcome, check_on_error

try:
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy
except ImportError:  # Airflow before 3.3
    _DEFAULTS: dict[str, Any] = {}
else:
    _DEFAULTS = {"retry_policy": DingTalkRetryPolicy()}

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow.providers.common.compat.sdk import BaseOperatorLink, Context

    from airflow_provider_dingconf.dingtalk.errors import DingTalkError
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook
    from airflow_provider_dingconf.outcomes import Outcome

MAP_INDEX_CHARACTERS = 250
"""Of the name of a mapped task: as many go into Airflow's database."""


class DingTalkTask(BaseOperator):
    """A task that calls DingTalk.

    An operator inherits from it alone; a sensor from it and then from ``BaseSensorOperator``. It has an
    attribute ``on_error``, the checked overrides.
    """

    operator_extra_links: tuple[BaseOperatorLink, ...] = (
        CallDocumentationLink(),
        ErrorDocumentationLink(),
        JoinConferenceLink(),
    )
    airflow_defaults: ClassVar[Mapping[str, Any]] = {}
    """Parameters of Airflow's for which the task has another default."""

    on_error: dict[str, Outcome]

    @classmethod
    def check_parameters(cls, given: Mapping[str, Any]) -> None:
        """Check parameters that no template fills in, when the DAG is parsed.

        :param given: those that are given, by name.
        :raises InvalidInputError: one of them is wrong.
        """

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the task with all but the mapped parameters: checked now, and named in the UI."""
        kwargs.setdefault("map_index_template", "{{ task.shown_as }}")
        of_task, own = kwargs.get("default_args") or {}, _own_parameters(cls)
        made = super().partial(**kwargs)
        outer = [made.kwargs.get(name) for name in ("dag", "task_group")]
        given = {name: value for each in outer if each for name, value in each.default_args.items()}
        given.update(of_task, **kwargs)
        cls.check_parameters({name: value for name, value in given.items() if name in own})
        made.kwargs.update((name, value) for name, value in cls.airflow_defaults.items() if name not in given)
        # Airflow keeps of them what every operator has; the rest is merged when the task is unmapped.
        made.kwargs["default_args"] = {name: value for name, value in of_task.items() if name in own}
        return made

    @property
    def shown_as(self) -> str:
        """What the UI calls a mapped task, in place of its index."""
        return self.shown_meeting()[:MAP_INDEX_CHARACTERS]

    def shown_meeting(self) -> str:
        """Return a name of the meeting, or meetings, of the task."""
        raise NotImplementedError

    def keep_links(
        self,
        context: Context,
        base_url: str | None,
        page: str | None,
        error: DingTalkError | None = None,
        join_url: str | None = None,
    ) -> None:
        """Keep what the links of the task lead to.

        :param base_url: the host that was called; None if no call was made.
        :param page: the name of the call's page in DingTalk's documentation; None if it is not known.
        :param error: the error that the call ended in.
        :param join_url: the address to join the meeting that was found.
        """
        if base_url and not isinstance(error, InvalidInputError):
            keep_links(self, context, links_for(base_url, page, error, join_url))

    def end_in(self, error: DingTalkError) -> None:
        """Log an error and give the task the state that belongs to it; return if that is success.

        :raises AirflowFailException: the outcome is FAIL.
        :raises AirflowSkipException: the outcome is SKIP.
        :raises DingTalkError: the outcome is RETRY.
        """
        if not isinstance(error, ConferencesError):  # the table of the meetings has been logged
            self.log.warning("%s", error)
        apply_outcome(error, self.on_error)

    def push_anyway(self, context: Context, xcom: Any) -> None:
        """Push the XCom of a task that is about to fail or to be skipped: Airflow pushes none."""
        if self.do_xcom_push and "ti" in context:
            context["ti"].xcom_push(key="return_value", value=xcom)


class CallingTask(DingTalkTask):
    """A task that makes its calls while it occupies a worker slot.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code or error class, in place of the defaults.
    :param max_attempts: attempts of one call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of one call in all, the waits between attempts included.
    :raises InvalidInputError: a parameter is wrong; when the DAG is parsed.
    """

    action: ClassVar[str]
    """What the task does, in a message."""
    airflow_defaults = _DEFAULTS
    ui_color = "#1677ff"
    ui_fgcolor = "#ffffff"

    def __init__(
        self,
        *,
        dingtalk_conn_id: str = "dingtalk_default",
        on_error: Mapping[str, Outcome | str] | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        max_seconds: float = MAX_SECONDS,
        **kwargs: Any,
    ) -> None:
        kwargs["default_args"] = {**self.airflow_defaults, **(kwargs.get("default_args") or {})}
        super().__init__(**kwargs)
        CallingTask.check_parameters(locals())
        self.dingtalk_conn_id = dingtalk_conn_id
        self.on_error = check_on_error(on_error)
        self.max_attempts = max_attempts
        self.max_seconds = max_seconds
        self._calling = self._killed = False

    @classmethod
    def check_parameters(cls, given: Mapping[str, Any]) -> None:
        """Check parameters that no template fills in, when the DAG is parsed.

        :param given: those that are given, by name.
        :raises InvalidInputError: one of them is wrong.
        """
        check_on_error(given.get("on_error"))
        check_limits(given.get("max_attempts", MAX_ATTEMPTS), given.get("max_seconds", MAX_SECONDS))

    def make_hook(self) -> DingTalkConferenceHook:
        """Return a hook with the task's connection and limits; imported when the task runs."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook

        return DingTalkConferenceHook(
            self.dingtalk_conn_id, max_attempts=self.max_attempts, max_seconds=self.max_seconds
        )

    def on_kill(self) -> None:
        """End the call that is being made; the hook undoes a lock that it may have made.

        :raises SystemExit: a call is being made, and Airflow 3 would let it run on.
        """
        self._killed = True
        if self._calling and AIRFLOW_V_3_0_PLUS:  # Airflow 2 raises an exception after this
            raise SystemExit(f"{self.action} was interrupted")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the end of the task end the block, but not what the task tells Airflow before and after."""
        self._calling = True
        try:
            if self._killed:
                raise SystemExit(f"{self.action} was interrupted")
            yield
        finally:
            self._calling = False


def check_switches(given: Mapping[str, Any], *names: str) -> None:
    """Check that parameters, of those that are given, are True or False.

    :raises InvalidInputError: one of them is something else, such as a template.
    """
    for name in names:
        if not isinstance(value := given.get(name, False), bool):
            raise InvalidInputError(f"{name}: {value!r} is not True or False; it is not a template")


@cache
def _own_parameters(cls: type) -> frozenset[str]:
    """Return the parameters of a task that not every operator of Airflow's has."""
    inits = [
        one.__dict__["__init__"]
        for one in cls.__mro__
        if one not in BaseOperator.__mro__ and "__init__" in one.__dict__
    ]
    found = {name for init in inits for name in inspect.signature(init).parameters}
    return frozenset(found - {"self", "kwargs", "args"})
