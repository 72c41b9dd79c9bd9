"""One asynchronous client of DingTalk: tokens, retries, rate limit, events. Knows no DAG, task or XCom."""
