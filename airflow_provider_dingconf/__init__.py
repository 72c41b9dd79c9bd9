"""Lock and unlock DingTalk video meetings from Apache Airflow."""

__version__ = "0.1.0"
