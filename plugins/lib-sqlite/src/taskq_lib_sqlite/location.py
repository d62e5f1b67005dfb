"""Which file a URL names.

| URL | file |
|---|---|
| ``sqlite://`` | ``$XDG_STATE_HOME/taskq/APP.db``, without that variable ``~/.local/state/taskq/APP.db`` |
| ``sqlite:///jobs.db`` | ``jobs.db`` in the current directory: exactly one component, as SQLAlchemy reads it |
| ``sqlite:///var/lib/jobs.db`` | ``/var/lib/jobs.db``: several components |
| ``sqlite:////jobs.db`` | ``/jobs.db``: four slashes are always absolute |
| ``sqlite:jobs.db`` ``sqlite://jobs.db`` ``sqlite://./data/jobs.db`` | relative to the current directory |
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskq.errors import ConfigError, UrlError

if TYPE_CHECKING:
    from taskq.spi import Url

CONVENTIONS = (
    "sqlite:///a/b.db is the absolute path /a/b.db, sqlite:///b.db is b.db in the current directory, "
    "and sqlite://a/b.db "
    "is relative to it"
)


def file_for(urls: Sequence[Url], app: str) -> str:
    """Return the absolute path of the database file that the URL names; nothing is created.

    Raises:
        UrlError: several URLs, a user or port, ``:memory:``, or a path that ends in a slash.
        ConfigError: no path is given and no home directory is known.
    """
    if len(urls) != 1:
        raise UrlError(f"a file has no fail-over servers: {len(urls)} sqlite URLs were given, give one")
    url = urls[0]
    if url.username is not None or url.password is not None or url.port is not None:
        raise UrlError(f"cannot read {url} as a file's URL: a file has no user, password or port; {CONVENTIONS}")
    if url.host:
        path = url.host + url.path
    elif url.path.startswith("//"):
        path = "/" + url.path.lstrip("/")
    elif re.match(r"/[A-Za-z]:[/\\]", url.path) or url.path.count("/") == 1:
        path = url.path[1:]
    else:
        path = url.path
    if path.lstrip("/") == ":memory:":
        raise UrlError(
            f"{url} would give every process, and every connection, a database of its own; "
            "use memory:// for queues inside one process"
        )
    if not path:
        return os.path.join(_state_directory(), _file_name(app))
    if path.endswith("/"):
        raise UrlError(f"{url} names a directory, not a file; add a file name: {CONVENTIONS}")
    return os.path.abspath(path)


def _state_directory() -> str:
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the specification says to ignore a relative one
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            raise ConfigError("sqlite:// needs a home directory for its file and there is none; name a file in the URL")
        base = os.path.join(home, ".local", "state")
    return os.path.join(base, "taskq")


def _file_name(app: str) -> str:
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", app).strip("-.")[:60]
    if clean != app:  # two names must not end in one file
        clean = f"{clean or 'app'}-{hashlib.sha256(app.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return clean + ".db"


def make_default_directory(path: str) -> None:
    """Create the state directory, private to the user, where ``path`` lies in it."""
    try:
        wanted = os.path.dirname(path) == _state_directory()
    except ConfigError:
        return
    if wanted:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
