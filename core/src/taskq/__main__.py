"""``python -m taskq`` is the command ``taskq``."""

from taskq.cli import main

main()
