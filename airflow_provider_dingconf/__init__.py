"""Lock and unlock DingTalk video meetings from Apache Airflow."""

__version__ = "1.0.0"
