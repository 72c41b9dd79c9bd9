"""Exams: every running meeting whose title begins with a word is locked while tasks work.

To copy: set the pattern of the titles, and your own work. One task locks all of the meetings; its XCom has a
result for each. If a meeting has ended meanwhile, the log notes it, and the work goes on.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_dingconf.operators import conference_lock

with DAG(
    dag_id="example_lock_all_running",
    schedule=None,
    params={"title_pattern": Param("^Exam ", type="string", minLength=1, description="a regular expression")},
    tags=["dingtalk", "example"],
    doc_md=__doc__,
):

    @task
    def report(results: list[dict]) -> None:
        """Say which meetings are locked."""
        for result in results:
            ending = "is locked" if result["success"] else f"is not locked: {result['error']['code']}"
            print(f"{result['conference_id']} {ending}")

    with conference_lock(
        running=True, title_pattern="{{ params.title_pattern }}", max_meetings=50
    ) as section:
        report(section.lock.output)
