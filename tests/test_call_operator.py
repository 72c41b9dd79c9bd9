"""``DingTalkOperator``: any call of DingTalk's API as a task."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from airflow.exceptions import AirflowFailException
from airflow.providers.common.compat.sdk import DAG, BaseOperator
from runs import Instance, Ran, all_output, connected_sandbox, run_dag

from airflow_provider_dingconf import hooks
from airflow_provider_dingconf.dingtalk.errors import (
    ConnectionLostError,
    InvalidInputError,
    ThrottledError,
)
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.links import ErrorDocumentationLink
from airflow_provider_dingconf.operators import DingTalkOperator
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("conn")
MUTE = "/v1.0/conference/videoConferences/{conference_id}/allMembers/mute"

# Tasks that Airflow runs

DAG_FILE = """
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_dingconf.operators import DingTalkOperator

MEETING = "/v1.0/conference/videoConferences/{conference_id}"

with DAG("any_call", schedule=None, params={"id": "cid//Vc7N==", "nick": "安", "other": "m2"}) as dag:
    DingTalkOperator(
        task_id="templated",
        method="get",
        path=MEETING + "/{{ 'details' }}",
        path_params={"conference_id": "{{ params.id }}"},
        params={"nick": "{{ params.nick }}", "maxResults": 20},
    )
    DingTalkOperator(
        task_id="body",
        method="POST",
        path=MEETING + "/coHosts/set",
        path_params={"conference_id": "m1"},
        json={"action": "set", "userList": [{"unionId": "{{ params.nick }}"}]},
    )
    DingTalkOperator.partial(
        task_id="mapped", method="POST", path=MEETING + "/members/kick", params={"nick": "{{ params.nick }}"}
    ).expand(
        path_params=[{"conference_id": "m1"}, {"conference_id": "{{ params.other }}"}]
    )
    DingTalkOperator(
        task_id="refused", method="POST", path="/v1.0/refused", on_error={"noPermission": "skip"}
    )
    DingTalkOperator(
        task_id="empty",
        method="POST",
        path=MEETING + "/lock",
        path_params={"conference_id": "{{ params.get('missing') }}"},
    )
"""


@pytest.fixture(scope="module")
def ran(airflow_db: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Run the DAG once."""
    with connected_sandbox() as sandbox:
        sandbox.fail(Fault(path="/refused", code="noPermission"))
        with all_output(tmp_path_factory.mktemp("log") / "output") as output:
            run = run_dag("any_call", DAG_FILE)
        yield Ran.of(run, sandbox, log=output.read_text(errors="replace"))


def sent(ran: Ran, ending: str) -> list[Any]:
    return [call for call in ran.calls if call.path.partition("?")[0].endswith(ending)]


def test_templates_fill_in_the_path_its_parameters_the_query_and_the_body(ran: Ran) -> None:
    (call,) = sent(ran, "/details")
    assert (ran.state("templated"), call.method) == ("success", "GET")
    assert "/videoConferences/cid%2F%2FVc7N%3D%3D/details" in call.path
    assert call.path.endswith("?nick=%E5%AE%89&maxResults=20")
    (call,) = sent(ran, "/coHosts/set")
    assert call.json() == {"action": "set", "userList": [{"unionId": "安"}]}
    assert ran.result("body") == {"success": True}


def test_a_mapped_task_makes_a_call_for_each_and_is_named_after_it(ran: Ran) -> None:
    paths = [f"/v1.0/conference/videoConferences/{one}/members/kick" for one in ("m1", "m2")]
    called = sorted(call.path for call in sent(ran, "/members/kick"))
    assert called == [f"{path}?nick=%E5%AE%89" for path in paths]
    names = [ran.instances["mapped", index].rendered_map_index for index in (0, 1)]
    assert names == [f"POST {path}" for path in paths]


def test_a_refused_task_is_skipped_as_on_error_says_and_links_to_the_error_codes(ran: Ran) -> None:
    link = ErrorDocumentationLink()
    assert ran.state("refused") == "skipped"
    assert ran.link("refused", link).endswith("/server-api-error-codes-1")
    assert [each.name for each in DingTalkOperator.operator_extra_links] == [link.name]


def test_a_template_without_a_value_fails_the_task_before_a_call_is_made(ran: Ran) -> None:
    assert (ran.state("empty"), ran.tries("empty")) == ("failed", 1)
    assert (
        "path_params: 'conference_id': it is 'None', as a template or XCom without a value renders" in ran.log
    )
    assert not sent(ran, "/lock")


def test_no_secret_is_in_the_rendered_fields_the_xcoms_or_the_log(ran: Ran) -> None:
    log = "\n".join(line for line in ran.log.splitlines() if "MaskSecret(" not in line)
    shown = f"{ran.rendered} {ran.xcoms} {log}"
    assert "cid//Vc7N==" in shown
    assert ran.tokens
    assert not [secret for secret in (Sandbox.client_secret, *ran.tokens) if secret in shown]


# Tasks whose ``execute`` is called directly


def mute(**arguments: Any) -> DingTalkOperator:
    """Return a task that mutes everyone."""
    given = {"task_id": "mute", "method": "POST", "path": MUTE, "path_params": {"conference_id": "m"}}
    return DingTalkOperator(**{**given, "json": {"action": "mute"}, **arguments})  # type: ignore[arg-type]


def execute(**arguments: Any) -> Any:
    return mute(**arguments).execute({"ti": Instance()})


@pytest.mark.parametrize(
    ("status", "body", "xcom"),
    [
        (204, "", None),
        (200, "", None),
        (200, [1, "a"], [1, "a"]),
        (200, True, True),
        (200, "false", False),
        (200, "null", None),
        (202, {"a": {"b": None}}, {"a": {"b": None}}),
    ],
)
def test_the_xcom_is_whatever_json_a_good_response_holds(
    sandbox: Sandbox, status: int, body: Any, xcom: Any
) -> None:
    sandbox.fail(Fault(call="other", status=status, body=body))
    found = execute()
    assert (type(found), found) == (type(xcom), xcom)


def test_on_error_makes_a_refusal_a_success_without_an_xcom(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="other", code="noPermission"))
    assert execute(on_error={"noPermission": "succeed"}) is None


def test_a_call_is_retried_when_its_response_was_lost(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="other", drop=True, after=True, times=1))
    assert execute() == {"success": True}
    assert len(sandbox.calls_of("other")) == 2


def test_a_call_that_must_not_be_repeated_says_that_it_may_have_taken_effect(sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="other", drop=True, after=True))
    with pytest.raises(AirflowFailException, match="may have taken effect although its response was lost"):
        execute(repeatable=False)
    assert len(sandbox.calls_of("other")) == 1
    with pytest.raises(ConnectionLostError):
        execute(repeatable=False, on_error={"connectionLost": "retry"})


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_call_that_must_not_be_repeated_is_sent_once_over_a_connection_that_breaks(
    sandbox: Sandbox, method: str
) -> None:
    sandbox.fail(Fault(path="/v1.0/once", drop=True, after=True))
    with pytest.raises(AirflowFailException, match="may have taken effect"):
        execute(method=method, path="/v1.0/once", path_params=None, json=None, repeatable=False)
    assert [call.method for call in sandbox.calls_of("unknown")] == [method]


@pytest.mark.parametrize("reason", ["it was not sent", "it was throttled"])
def test_a_call_that_must_not_be_repeated_is_repeated_if_it_surely_took_no_effect(
    conn: Callable[..., None], sandbox: Sandbox, reason: str
) -> None:
    if reason == "it was not sent":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            host = f"http://127.0.0.1:{closed.getsockname()[1]}"
        conn(host=host, extra={"access_token": "token"})
    else:
        sandbox.fail(Fault(call="other", code="system.busy"))
    with pytest.raises((ConnectionLostError, ThrottledError)) as caught:
        execute(repeatable=False, max_attempts=2)
    assert getattr(caught.value, "attempts", None) == 2
    assert "may have taken effect" not in str(caught.value)


def test_an_invalid_connection_fails_the_task(conn: Callable[..., None], sandbox: Sandbox) -> None:
    conn(password="")
    with pytest.raises(AirflowFailException, match="password"):
        execute()
    assert sandbox.calls == []


def test_a_task_that_is_killed_before_its_call_makes_none(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = mute()

    class Slow(DingTalkConferenceHook):
        def get_connection(self, conn_id: str) -> Any:
            task.on_kill()
            return super().get_connection(conn_id)

    monkeypatch.setattr(hooks, "DingTalkConferenceHook", Slow)
    with pytest.raises(SystemExit):
        task.execute({"ti": Instance()})
    assert sandbox.calls == []


# The DAG file

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"method": "FETCH"}, "method: 'FETCH' is not one of DELETE, GET, PATCH, POST, PUT"),
    ({"method": "{{ params.verb }}"}, "method: '{{ params.verb }}' is not one of"),
    ({"json": "{}"}, "json: a body of type str cannot be sent; give a dict or a list"),
    ({"params": {"a": 1}, "query_params": {"a": 1}}, "they are two names of one parameter"),
    ({"params": {"ids": ["a"]}}, "'ids' is a list, not a text, a number or a boolean"),
    ({"query_params": ["a"]}, "query parameters or body: they cannot be sent"),
    ({"on_error": {"confClose": "fail"}}, "did you mean 'confClosed'?"),
    ({"max_attempts": 0}, "max_attempts: 0 is not a whole number of at least 1"),
    ({"repeatable": "no"}, "repeatable: 'no' is not True or False; it is not a template"),
    ({"path": "conference/x", "path_params": None}, "path: 'conference/x' is not a plain absolute path"),
    ({"path_params": ["m"]}, "path_params: expected a dict of values by name, got ['m']"),
    ({"path_params": {}}, "path_params: 'conference_id' is missing, for which the path has a placeholder"),
    ({"path_params": {"conference_id": None}}, "path_params: 'conference_id': it is None"),
]


@pytest.mark.parametrize(("wrong", "said"), MISTAKES)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_mistake_is_an_error_of_the_dag_file(wrong: dict[str, Any], said: str, mapped: bool) -> None:
    make = partial(DingTalkOperator.partial, task_id="mute", method="POST", path=MUTE) if mapped else mute
    with pytest.raises(InvalidInputError) as caught:
        make(**wrong)
    assert said in str(caught.value)


def test_what_a_template_or_another_task_fills_in_is_not_checked_when_the_dag_is_parsed() -> None:
    with DAG("parsed", schedule=None):
        found = BaseOperator(task_id="found").output
        for number, given in enumerate(
            [
                {"path": "{{ params.path }}", "path_params": None},
                {"path_params": "{{ params.values }}"},
                {"path_params": found},
                {"path_params": {"conference_id": found}},
                {"json": "{{ params.body }}", "query_params": "{% if 1 %}{}{% endif %}"},
                {"json": found, "query_params": {"a": found}},
            ]
        ):
            mute(task_id=f"task{number}", **given)
