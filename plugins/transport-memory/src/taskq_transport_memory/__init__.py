"""taskq's memory transport; see ``plugin`` for what it offers."""
