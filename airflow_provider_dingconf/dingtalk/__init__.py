"""DingTalk's API as plain values: what to send, what an answer means, whether to try again.

Nothing here knows Airflow, does I/O or reads a clock: whoever drives it passes the time in.
"""
