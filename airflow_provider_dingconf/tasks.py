"""``DingTalkTask``: what the operators and the sensor have in common.

The names of mapped tasks, parameters out of ``default_args``, and the task state that an error ends in.
``CallingTask`` adds what the operators share: the hook, the limits of a call, and its end when the task is
killed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.errors import ConferencesError, DingTalkError, InvalidInputError
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS, check_limits
from airflow_provider_dingconf.links import (
    CallDocumentationLink,
    ErrorDocumentationLink,
    JoinConferenceLink,
    keep_links,
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
    def _check(cls, given: Mapping[str, Any]) -> None:
        """Check parameters that no template fills in, when the DAG is parsed.

        :param given: those that are given, by name.
        :raises InvalidInputError: one of them is wrong.
        """
        check_on_error(given.get("on_error"))

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the task with all but the mapped parameters: checked now, and named in the UI."""
        kwargs.setdefault("map_index_template", "{{ task.shown_as }}")
        of_task = kwargs.get("default_args") or {}
        made = super().partial(**kwargs)
        outer = [made.kwargs.get(name) for name in ("dag", "task_group")]
        given = {name: value for each in outer if each for name, value in each.default_args.items()}
        given.update(of_task, **kwargs)
        cls._check(given)
        made.kwargs.update((name, value) for name, value in cls.airflow_defaults.items() if name not in given)
        # Airflow keeps of them what every operator has; the rest is merged when the task is unmapped.
        rest = {name: value for name, value in of_task.items() if name not in made.kwargs}
        made.kwargs["default_args"] = rest
        return made

    @property
    def shown_as(self) -> str:
        """What the UI calls a mapped task, in place of its index."""
        return self._shown()[:MAP_INDEX_CHARACTERS]

    def _shown(self) -> str:
        """Return a name of the meeting, or meetings, of the task."""
        raise NotImplementedError

    def end_in(self, error: DingTalkError) -> None:
        """Log an error and give the task the state that belongs to it; return if that is success.

        :raises: as :func:`~airflow_provider_dingconf.outcomes.apply_outcome`.
        """
        if not isinstance(error, ConferencesError):  # the table of the meetings has been logged
            self.log.warning("%s", error)
        apply_outcome(error, self.on_error)


class CallingTask(DingTalkTask):
    """A task that makes its calls while it occupies a worker slot; parameters as ``LockConferenceOperator``.

    A subclass says whether there is anything to call (``_has_work``), what it calls (``_call``), what its
    XCom is if there is nothing, or if an error makes the task a success (``_xcom_of``), and what is to be
    done if the task does not succeed (``_clean_up``).
    """

    action: ClassVar[str]
    """What the task does, in a message."""
    page: str | None = None
    """The name of the call's page in DingTalk's documentation; None if there is none."""
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
        CallingTask._check(locals())
        self.dingtalk_conn_id = dingtalk_conn_id
        self.on_error = check_on_error(on_error)
        self.max_attempts = max_attempts
        self.max_seconds = max_seconds
        self._calling = self._killed = False
        self._join_url: str | None = None

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        super()._check(given)
        check_limits(given.get("max_attempts", MAX_ATTEMPTS), given.get("max_seconds", MAX_SECONDS))

    def execute(self, context: Context) -> Any:
        """Make the calls, and give the task the state that belongs to how they ended."""
        if not self._has_work():
            return self._xcom_of(None)
        self._killed = False
        base_url: str | None = None
        error: DingTalkError | None = None
        xcom: Any = None
        hook = self.make_hook()
        try:
            try:
                base_url = hook.settings.base_url  # here: a request to Airflow is not to be interrupted
                xcom = self._call(context, hook)
            except DingTalkError as failed:
                error = failed
            keep_links(self, context, base_url, self.page, error, join_url=self._join_url)
            if error is not None:
                self.end_in(error)
                xcom = self._xcom_of(error)
            self._stop_if_killed()
        except BaseException as raised:
            if not isinstance(error, InvalidInputError):
                self._clean_up(context, hook, raised)
            raise
        finally:
            hook.close()
        return xcom

    # No subclass has an execute that calls this one: Airflow 2 would take it for that of a nested operator.

    def _has_work(self) -> bool:
        return True

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> Any:
        raise NotImplementedError

    def _xcom_of(self, error: DingTalkError | None) -> Any:
        return None

    def _clean_up(self, context: Context, hook: DingTalkConferenceHook, raised: BaseException) -> None:
        """Do what is to be done if the task does not succeed, unless nothing was sent."""

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
            self._stop_if_killed()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the end of the task end the block, but not what the task tells Airflow before and after."""
        self._calling = True
        try:
            self._stop_if_killed()
            yield
        finally:
            self._calling = False

    def _stop_if_killed(self) -> None:
        if self._killed:
            raise SystemExit(f"{self.action} was interrupted")


def check_switches(given: Mapping[str, Any], *names: str) -> None:
    """Check that parameters, of those that are given, are True or False.

    :raises InvalidInputError: one of them is something else, such as a template.
    """
    for name in names:
        if not isinstance(value := given.get(name, False), bool):
            raise InvalidInputError(f"{name}: {value!r} is not True or False; it is not a template")
