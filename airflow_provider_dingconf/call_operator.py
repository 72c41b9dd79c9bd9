"""``DingTalkOperator``: make any call of DingTalk's API as a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_dingconf.dingtalk.calls import any_call
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.links import ErrorDocumentationLink
from airflow_provider_dingconf.tasks import CallingTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class _ParamsAreQueryParams(type(CallingTask)):
    """Takes ``params`` as query parameters: Airflow would take them as parameters of the DAG run."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_airflow_from_mapped" not in kwargs:  # to a mapped task, Airflow adds its own params
            _rename(kwargs)
        return super().__call__(*args, **kwargs)


def _rename(kwargs: dict[str, Any]) -> None:
    if "params" in kwargs:
        if kwargs.get("query_params") is not None:
            raise InvalidInputError("params and query_params: they are two names of one parameter; give one")
        kwargs["query_params"] = kwargs.pop("params")


class DingTalkOperator(CallingTask, metaclass=_ParamsAreQueryParams):
    """Make any call of DingTalk's API, with the connection's access token, retries and errors.

    .. code-block:: python

        mute_all = DingTalkOperator(
            task_id="mute_all",
            method="POST",
            path="/v1.0/conference/videoConferences/{conference_id}/allMembers/mute",
            path_params={"conference_id": "{{ params.conference_id }}"},
            json={"action": "mute", "forceMute": True},
        )

    The XCom is the JSON of the response. There is no XCom if the response has no body, or if the call failed
    and ``on_error`` makes that a success. Source: `Server API error codes
    <https://help.dingtalk.io/open/development/server-api-error-codes-1>`__; the pages beside it describe the
    calls.

    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: the path, with names in braces for ``path_params``. (templated)
    :param path_params: the values for the names in braces. The operator percent-encodes each as one path
        segment, and leaves them out of the call's name in metrics: put ids here. (templated)
    :param params: the query parameters: strings, numbers and booleans. Airflow's own ``params`` belong to the
        DAG. (templated)
    :param query_params: another name for ``params``; use this one in ``expand``. (templated)
    :param json: the body, a dict or a list. (templated)
    :param repeatable: whether the call may be sent again after its response was lost. Set False for a call
        that creates something: the hook then repeats it only if DingTalk never received it, or refused it as
        too frequent. If the response was lost, the task fails without a retry, and the error says that the
        call may have taken effect.

    The errors and the parameters ``dingtalk_conn_id``, ``on_error``, ``max_attempts`` and ``max_seconds``
    are those of :class:`LockConferenceOperator`.
    """

    action = "the call"
    switches = ("repeatable",)
    operator_extra_links = (ErrorDocumentationLink(),)

    template_fields: Sequence[str] = ("path", "path_params", "query_params", "json", "dingtalk_conn_id")
    template_fields_renderers = dict.fromkeys(("path_params", "query_params", "json"), "json")

    def __init__(
        self,
        *,
        method: str,
        path: str,
        path_params: Mapping[str, str | int] | None = None,
        query_params: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | list[Any] | None = None,
        repeatable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._check(locals())
        self.method = method
        self.path = path
        self.path_params = path_params
        self.query_params = query_params
        self.json = json
        self.repeatable = repeatable

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Return the operator with all but the mapped parameters."""
        _rename(kwargs)
        return super().partial(**kwargs)

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        super()._check(given)
        known = {name: value for name, value in given.items() if _is_final(value)}
        if not {"path", "path_params"} <= known.keys():  # only both together can be checked
            known |= {"path": "/v1.0", "path_params": None}
        method, query = given.get("method", "GET"), known.get("query_params")
        any_call(
            method, known["path"], path_params=known["path_params"], params=query, json=known.get("json")
        )

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> Any:
        with self._interruptible(hook):
            return hook.call(
                self.method,
                self.path,
                path_params=self.path_params,
                params=self.query_params,
                json=self.json,
                repeatable=self.repeatable,
            )

    def _shown(self) -> str:
        try:
            return any_call(self.method, self.path, path_params=self.path_params).name
        except InvalidInputError:
            return f"{self.method} {self.path}"


def _is_final(value: object) -> bool:
    """Return whether a value is what will be sent: without a template or anything else Airflow resolves."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, Mapping):
        return all(map(_is_final, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_final, value))
    return value is None or isinstance(value, (int, float, bytes))
