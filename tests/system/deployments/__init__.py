"""Airflow as it is run in earnest: its components as processes, PostgreSQL, Celery with Redis."""
