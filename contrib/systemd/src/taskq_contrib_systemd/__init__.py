"""Workers as systemd services of ``Type=notify``, with the watchdog."""
