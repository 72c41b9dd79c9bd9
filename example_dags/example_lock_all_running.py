"""Exams: every running meeting whose title begins with a word is locked by one task, and unlocked by another.

To copy: set the pattern of the titles. One task locks them all, 20 at a time; its XCom has a result for each,
and a retry asks only for those that are not yet locked.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator

with DAG(
    dag_id="example_lock_all_running",
    schedule=None,
    params={"title_pattern": Param("^Exam ", type="string", description="a regular expression")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def report(results: list[dict]) -> None:
        """Say which meetings are locked."""
        for result in results:
            print(f"{result['conference_id']} is locked")

    lock = LockConferenceOperator(
        task_id="lock",
        running=True,
        title_pattern="{{ params.title_pattern }}",
        on_error={"confClosed": "succeed"},  # one that ends meanwhile is no reason to skip what follows
    )
    unlock = UnlockConferenceOperator(
        task_id="unlock",
        conference_id=lock.output,
        on_error={"confClosed": "succeed"},
        trigger_rule="all_done",  # the lock of one may be refused: the others are unlocked all the same
    )
    report(lock.output) >> unlock
