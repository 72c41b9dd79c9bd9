"""``DingTalkOperator``: any call of DingTalk's API as a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_dingconf.dingtalk.calls import any_call
from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.links import ErrorDocumentationLink
from airflow_provider_dingconf.tasks import CallingTask, check_switches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_dingconf.hooks import DingTalkConferenceHook


class _ParamsAreQueryParams(type(CallingTask)):
    """Keeps ``params`` from Airflow, which would take them for parameters of the DAG run."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the operator; Airflow's ``params`` of a mapped task, which it adds itself, stay Airflow's."""
        if "_airflow_from_mapped" not in kwargs:
            kwargs = _renamed(kwargs)
        return super().__call__(*args, **kwargs)


def _renamed(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with ``params`` as ``query_params``."""
    if "params" not in kwargs:
        return kwargs
    if kwargs.get("query_params") is not None:
        raise InvalidInputError("params and query_params: they are two names of one parameter; give one")
    kept = {name: value for name, value in kwargs.items() if name != "params"}
    return {**kept, "query_params": kwargs["params"]}


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

    The XCom is the JSON of the response; there is none if the response has no body, or if the call failed and
    ``on_error`` makes that a success. Source: `Server API error codes
    <https://help.dingtalk.io/open/development/server-api-error-codes-1>`__; the pages beside it describe the
    calls.

    Put ids into ``path_params``: they may hold characters that a path does not take, and the metrics then
    name the call without them.

    :param method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
    :param path: the path, with names in braces for ``path_params``. (templated)
    :param path_params: values for the names in braces; each is percent-encoded as one path segment.
        (templated)
    :param params: query parameters: texts, numbers and booleans; not Airflow's ``params``, which belong to
        the DAG here.
    :param query_params: another name of ``params``, and the name to use in ``expand``. (templated)
    :param json: the body, a dict or a list. (templated)
    :param repeatable: whether the call may be sent again when its response was lost. Set False for a call
        that creates something: it is repeated only if DingTalk refused it as too frequent. If its response
        was lost, the task fails, Airflow does not retry it, and the error says that the call may have taken
        effect.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``. (templated)
    :param on_error: outcomes by error code or error class, in place of the defaults, such as
        ``{"noPermission": "skip"}``.
    :param max_attempts: attempts of the call in all; not Airflow's own ``retries``.
    :param max_seconds: seconds of the call in all, the waits between attempts included.
    :raises InvalidInputError: a parameter is wrong; when the DAG is parsed, unless a template fills it in.
    :raises AirflowFailException: the outcome of the error is FAIL.
    :raises AirflowSkipException: the outcome of the error is SKIP.
    :raises DingTalkError: the outcome of the error is RETRY.
    """

    action = "the call"
    operator_extra_links = (ErrorDocumentationLink(),)

    template_fields: Sequence[str] = ("path", "path_params", "query_params", "json", "dingtalk_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "path_params": "json",
        "query_params": "json",
        "json": "json",
    }

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
        return super().partial(**_renamed(kwargs))

    @classmethod
    def _check(cls, given: Mapping[str, Any]) -> None:
        super()._check(given)
        check_switches(given, "repeatable")
        templated = ("path", "path_params", "query_params", "json")
        known = {name: given[name] for name in templated if name in given and _is_final(given[name])}
        path, path_params = "/v1.0", None
        if {"path", "path_params"} <= known.keys():
            path, path_params = known["path"], known["path_params"]
        method, query = given.get("method", "GET"), known.get("query_params")
        any_call(method, path, path_params=path_params, params=query, json=known.get("json"))

    def _call(self, context: Context, hook: DingTalkConferenceHook) -> Any:
        with self._interruptible():
            return hook.call(
                self.method,
                self.path,
                path_params=self.path_params,
                params=self.query_params,
                json=self.json,
                repeatable=self.repeatable,
            )

    def _shown(self) -> str:
        """Return the call, with the values in its path."""
        try:
            return any_call(self.method, self.path, path_params=self.path_params).name
        except InvalidInputError:
            return f"{self.method} {self.path}"


def _is_final(value: object) -> bool:
    """Return whether a value is what will be sent: no template in it, and nothing that Airflow resolves."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, Mapping):
        return all(map(_is_final, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_final, value))
    return value is None or isinstance(value, (int, float, bytes))
