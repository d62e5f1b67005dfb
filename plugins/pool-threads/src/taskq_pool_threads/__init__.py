"""The threads pool: jobs run on a number of threads of the worker's process."""
