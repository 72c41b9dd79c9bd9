"""``DingTalkTask``: what the operators and the sensor have in common.

The links of a task, the names of mapped tasks, parameters out of ``default_args``, and the task state that an
error ends in.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_dingconf.dingtalk.errors import ConferencesError, InvalidInputError
from airflow_provider_dingconf.links import (
    CallDocumentationLink,
    ErrorDocumentationLink,
    JoinConferenceLink,
    keep_links,
    links_for,
)
from airflow_provider_dingconf.outcomes import apply_outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.dingtalk.errors import DingTalkError
    from airflow_provider_dingconf.outcomes import Outcome

MAP_INDEX_CHARACTERS = 250
"""Of the name of a mapped task: as many go into Airflow's database."""


class DingTalkTask(BaseOperator):
    """A task that calls DingTalk.

    An operator inherits from it alone; a sensor from it and then from ``BaseSensorOperator``. It has an
    attribute ``on_error``, the checked overrides.
    """

    operator_extra_links = (CallDocumentationLink(), ErrorDocumentationLink(), JoinConferenceLink())
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
        :param page: the name of the call's page in DingTalk's documentation.
        :param error: the error that the call ended in.
        :param join_url: the address to join the meeting that was found.
        """
        if base_url and page and not isinstance(error, InvalidInputError):
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
