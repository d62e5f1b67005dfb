"""The floors: the bare client library moving the same rows in the same steps, with no framework around it.

Same three functions as every contender. What a floor leaves out is what the framework is paid for: retries, leases,
errors, settings, several queues.
"""

BATCH = 1000
"""Rows claimed at once, as taskq's transports do."""
PAYLOAD = bytes(100)
"""About the size of taskq's no-op message."""
