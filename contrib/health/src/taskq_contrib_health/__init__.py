"""Health probes of a worker: HTTP on a port or a Unix socket, and ``taskq health``."""
