"""taskq's SQLite transport; see ``plugin`` for what it offers."""
