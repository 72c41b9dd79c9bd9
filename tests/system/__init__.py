"""Tests of real deployments: Airflow's own components, as processes, against the sandbox."""
