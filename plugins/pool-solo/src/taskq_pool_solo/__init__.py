"""The solo pool: jobs run on the worker's own thread, one at a time."""
