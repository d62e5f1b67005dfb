"""taskq's memory result store; see ``plugin`` for what it offers."""
