"""DingTalk's API as plain values: what to send, what a response means, whether to repeat the call.

Nothing here knows Airflow, does I/O or reads a clock: whoever drives it passes the time in.
"""
