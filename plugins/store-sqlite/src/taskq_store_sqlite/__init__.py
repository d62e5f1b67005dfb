"""taskq's SQLite result store; see ``plugin`` for what it offers."""
