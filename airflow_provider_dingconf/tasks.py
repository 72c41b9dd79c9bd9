"""``DingTalkTask``: what the operators and the sensor have in common.

``CallingTask`` adds what the operators share: the hook, the limits of a call, and its end when the task is
killed.
"""

from __future__ import annotations

from collections import ChainMap
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS

from airflow_provider_dingconf.dingtalk.conferences import conference_id_in
from airflow_provider_dingconf.dingtalk.errors import ConferencesError, DingTalkError
from airflow_provider_dingconf.dingtalk.inputs import check_switch
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS, check_limits
from airflow_provider_dingconf.links import (
    CallDocumentationLink,
    ErrorDocumentationLink,
    JoinConferenceLink,
    keep_links,
)
from airflow_provider_dingconf.outcomes import apply_outcome, check_on_error

_DEFAULTS: dict[str, Any] = {}
with suppress(ImportError):  # Airflow before 3.3
    from airflow_provider_dingconf.retry_policies import DingTalkRetryPolicy

    _DEFAULTS["retry_policy"] = DingTalkRetryPolicy()

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow.providers.common.compat.sdk import BaseOperatorLink, Context

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook
    from airflow_provider_dingconf.outcomes import Outcome


class DingTalkTask(BaseOperator):
    """A task that calls DingTalk.

    An operator inherits from it alone; a sensor from it and then from ``BaseSensorOperator``.
    """

    operator_extra_links: tuple[BaseOperatorLink, ...] = (
        CallDocumentationLink(),
        ErrorDocumentationLink(),
        JoinConferenceLink(),
    )
    airflow_defaults: ClassVar[Mapping[str, Any]] = {}
    """Parameters of Airflow's for which the task has another default."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Parameters that are True or False, and no templates."""
    named_by = "conference_id"
    """The parameter that names the meeting."""

    on_error: dict[str, Outcome]
    """The checked overrides."""

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        """Check the given parameters that no template fills in, when the DAG is parsed."""
        check_on_error(given.get("on_error"))
        for name in cls.switches:
            check_switch(name, given.get(name, False))

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the task with all but the mapped parameters: checked now, and named in the UI."""
        kwargs.setdefault("map_index_template", "{{ task.shown_as }}")
        of_task = kwargs.get("default_args") or {}
        made = super().partial(**kwargs)
        outer = [made.kwargs.get(name) for name in ("task_group", "dag")]
        given = ChainMap(kwargs, of_task, *(each.default_args for each in outer if each))
        cls._check(given)
        made.kwargs.update((name, value) for name, value in cls.airflow_defaults.items() if name not in given)
        # Airflow keeps of them what every operator has; the rest is merged when the task is unmapped.
        rest = {name: value for name, value in of_task.items() if name not in made.kwargs}
        made.kwargs["default_args"] = rest
        return made

    @property
    def shown_as(self) -> str:
        """What the UI calls a mapped task, in place of its index."""
        return str(self._shown())[:250]  # as many go into Airflow's database

    def _shown(self) -> Any:
        return conference_id_in(getattr(self, self.named_by))

    def end_in(self, error: DingTalkError) -> None:
        """Log an error and raise what gives the task its state; return if that is success."""
        if not isinstance(error, ConferencesError):  # the table of the meetings has been logged
            self.log.warning("%s", error)
        apply_outcome(error, self.on_error)


class CallingTask(DingTalkTask):
    """A task that makes its calls while it occupies a worker slot; parameters as ``LockConferenceOperator``.

    No subclass has an ``execute`` that calls this one: Airflow 2 would take it for that of a nested operator.
    """

    action: ClassVar[str]
    """What the task does, in a message."""
    page: str | None = None
    """The name of the call's page in DingTalk's documentation; None if there is none."""
    airflow_defaults = _DEFAULTS
    ui_color = "#1677ff"
    ui_fgcolor = "#ffffff"

    _calling = _killed = False
    _base_url: str | None = None
    _join_url: str | None = None

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

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        super()._check(given)
        check_limits(given.get("max_attempts", MAX_ATTEMPTS), given.get("max_seconds", MAX_SECONDS))

    def execute(self, context: Context) -> Any:
        """Make the calls, and give the task the state that belongs to how they ended."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook  # not when a DAG is parsed

        self._killed = False
        error: DingTalkError | None = None
        xcom: Any = None
        hook = DingTalkConferenceHook(
            self.dingtalk_conn_id, max_attempts=self.max_attempts, max_seconds=self.max_seconds
        )
        with closing(hook):
            try:
                try:
                    xcom = self._call(context, hook)
                except DingTalkError as failed:
                    error = failed
                keep_links(self, context, self._base_url, self.page, error, join_url=self._join_url)
                if error is not None:
                    self.end_in(error)
                    xcom = self._xcom_of(error)
                self._stop_if_killed()
            except BaseException as raised:
                self._clean_up(context, hook, raised)
                raise
        return xcom

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> Any:
        """Make the calls, if there is anything to do, and return the XCom."""
        raise NotImplementedError

    def _xcom_of(self, error: DingTalkError) -> Any:
        """Return the XCom after an error that makes the task a success."""

    def _clean_up(self, context: Context, hook: DingTalkConferenceHook, raised: BaseException) -> None:
        """Do what is to be done if the task does not succeed."""

    def on_kill(self) -> None:
        """End the call that is being made; the hook undoes a lock that it may have made.

        :raises SystemExit: a call is being made, and Airflow 3 would let it run on.
        """
        self._killed = True
        if self._calling and AIRFLOW_V_3_0_PLUS:  # Airflow 2 raises an exception after this
            self._stop_if_killed()

    @contextmanager
    def _interruptible(self, hook: DingTalkConferenceHook) -> Iterator[None]:
        """Let the end of the task end the block, but no request to Airflow: not that for the connection."""
        self._base_url = hook.settings.base_url
        self._calling = True
        try:
            self._stop_if_killed()
            yield
        finally:
            self._calling = False

    def _stop_if_killed(self) -> None:
        if self._killed:
            raise SystemExit(f"{self.action} was interrupted")
