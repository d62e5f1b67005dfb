"""Several workers from one command (``taskq multi``), and one that restarts when code changes (``taskq reload``)."""
