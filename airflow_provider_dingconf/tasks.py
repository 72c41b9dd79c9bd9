"""``DingTalkTask``, the base of the operators and the sensor, and ``CallingTask``, the base of the operators.

``CallingTask`` adds the hook, the limits of a call, and the end of the call when the task is killed.
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
from airflow_provider_dingconf.links import LINKS, keep_links
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

    operator_extra_links: tuple[BaseOperatorLink, ...] = LINKS
    airflow_defaults: ClassVar[Mapping[str, Any]] = {}
    """Airflow's own parameters for which the task has another default."""
    switches: ClassVar[tuple[str, ...]] = ()
    """Parameters that must be True or False, and are not templates."""
    named_by = "conference_id"
    """The parameter that names the meeting."""

    on_error: dict[str, Outcome]
    """The checked overrides."""

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        """Check the given parameters that are not templates, when the DAG is parsed."""
        check_on_error(given.get("on_error"))
        for name in cls.switches:
            check_switch(name, given.get(name, False))

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return a mapped task: its parameters are checked now, and the UI shows its meetings."""
        of_task = kwargs.get("default_args") or {}
        made = super().partial(**kwargs)
        outer = [made.kwargs.get(name) for name in ("task_group", "dag")]
        given = ChainMap(kwargs, of_task, *(each.default_args for each in outer if each))
        cls._check(given)
        defaults = {**cls.airflow_defaults, "map_index_template": "{{ task.shown_as }}"}
        made.kwargs.update((name, value) for name, value in defaults.items() if name not in given)
        # Airflow keeps those that every operator has, and merges the rest when it unmaps the task.
        rest = {name: value for name, value in of_task.items() if name not in made.kwargs}
        made.kwargs["default_args"] = rest
        return made

    @property
    def shown_as(self) -> str:
        """What the UI shows for a mapped task in place of its index."""
        text = str(self._shown())[:250]  # the limit of Airflow's database
        # A native template makes a number of a room code, and Airflow fails a task whose text is none.
        is_native = getattr(self.get_dag(), "render_template_as_native_obj", False)
        return repr(text) if is_native else text

    def _shown(self) -> Any:
        return conference_id_in(getattr(self, self.named_by))

    def end_in(self, error: DingTalkError) -> None:
        """Log an error, and raise the exception that gives the task its state; return for a success."""
        if not isinstance(error, ConferencesError):  # the log has the table of the meetings already
            self.log.warning("%s", error)
        apply_outcome(error, self.on_error)


class CallingTask(DingTalkTask):
    """A task that makes its calls while it occupies a worker slot; parameters as ``LockConferenceOperator``.

    Subclasses must not override ``execute`` and call this one: Airflow 2 would report a nested operator.
    """

    action: ClassVar[str]
    """What a message calls the work of the task."""
    page: str | None = None
    """The name of the call's page in DingTalk's documentation; None for no page."""
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
        """Make the calls, and end in the task state that their result asks for."""
        from airflow_provider_dingconf.hooks import DingTalkConferenceHook  # not when a DAG is parsed

        self._killed, self._base_url, self._join_url = False, None, None
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
        """Make the calls, if any are needed, and return the XCom."""
        raise NotImplementedError

    def _xcom_of(self, error: DingTalkError) -> Any:
        """Return the XCom of a task that succeeds although a call failed."""

    def _clean_up(self, context: Context, hook: DingTalkConferenceHook, raised: BaseException) -> None:
        """Clean up after a task that does not succeed."""

    def on_kill(self) -> None:
        """End the current call; the hook then undoes a lock that may have taken effect.

        :raises SystemExit: there is a current call, and Airflow 3 would let it continue.
        """
        self._killed = True
        if self._calling and AIRFLOW_V_3_0_PLUS:  # Airflow 2 raises an exception after this
            self._stop_if_killed()

    @contextmanager
    def _interruptible(self, hook: DingTalkConferenceHook) -> Iterator[None]:
        """Let the end of the task interrupt the block, but not the request to Airflow for the connection."""
        self._base_url = hook.settings.base_url  # reads the connection
        self._calling = True
        try:
            self._stop_if_killed()
            yield
        finally:
            self._calling = False

    def _stop_if_killed(self) -> None:
        if self._killed:
            raise SystemExit(f"{self.action} was interrupted")
