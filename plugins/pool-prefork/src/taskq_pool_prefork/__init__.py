"""The prefork pool: jobs run in supervised child processes."""
