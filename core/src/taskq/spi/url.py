"""Broker and result store URLs.

``SCHEME://user:password@host:port/path?option=value``; ``;`` separates fail-over servers. A URL's repr and str never
show its password or the values of its query; ``raw()`` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, unquote

from msgspec import Struct

from taskq.errors import UrlError

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*\Z")


class Url(Struct, frozen=True):
    """One parsed URL. ``path`` keeps its leading slash; user, password, host and query values are percent-decoded."""

    scheme: str
    username: str | None = None
    password: str | None = None
    host: str | None = None
    port: int | None = None
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Url:
        """Parse one URL.

        Raises:
            UrlError: no scheme, or a port that is not a number from 0 to 65535. The message never shows the password.
        """
        scheme, separator, rest = text.strip().partition(":")
        if not separator or not _SCHEME.match(scheme):
            raise UrlError(
                f"cannot read {redact_text(text)!r} as a URL: it has no scheme; write SCHEME://…, "
                "for example sqlite:// or redis://localhost/0"
            )
        if ":memory:" in rest:
            raise UrlError(
                f"{redact_text(text)!r} names a database that no other connection could see; "
                "use memory:// for one process, or a file"
            )
        if rest.startswith("//"):
            rest = rest[2:]
            head, query_mark, query = rest.partition("?")
            authority, slash, path = head.partition("/")
            path = slash + path
        else:
            head, query_mark, query = rest.partition("?")
            authority, path = "", head
        userinfo, at, hostport = authority.rpartition("@")
        username, colon, password = userinfo.partition(":")
        host, port = _split_host_port(hostport, text)
        return cls(
            scheme=scheme.lower(),
            username=unquote(username) if at and username else None,
            password=unquote(password) if colon else None,
            host=unquote(host) if host else None,
            port=port,
            path=unquote(path),
            query=tuple(parse_qsl(query, keep_blank_values=True)) if query_mark else (),
        )

    def _render(self, password: str | None, *, secrets: bool) -> str:
        host = self.host or ""
        if ":" in host:
            host = f"[{host}]"
        user = ""
        if self.username is not None or password is not None:
            user = quote(self.username or "", safe="") + (f":{password}" if password is not None else "") + "@"
        port = f":{self.port}" if self.port is not None else ""
        query = "&".join(f"{quote(k, safe='')}={quote(v, safe='/:,') if secrets else '***'}" for k, v in self.query)
        path = quote(self.path, safe="/:@+,=~")
        return f"{self.scheme}://{user}{quote(host, safe='[]:.')}{port}{path}" + (f"?{query}" if query else "")

    def raw(self) -> str:
        """Return the URL with its secrets, to hand to a client library."""
        return self._render(quote(self.password, safe="") if self.password is not None else None, secrets=True)

    def __str__(self) -> str:
        return self._render("***" if self.password is not None else None, secrets=False)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def without_query(self) -> Url:
        """Return the URL without its query, whose options the kernel has taken."""
        return Url(self.scheme, self.username, self.password, self.host, self.port, self.path)


def _split_host_port(text: str, whole: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, _, tail = text[1:].partition("]")
        port = tail.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not port:
        return host, None
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UrlError(f"the port in {redact_text(whole)!r} is not a number from 0 to 65535")
    return host, int(port)


def parse_urls(value: str | Sequence[str]) -> tuple[Url, ...]:
    """Parse a setting that names one server or several fail-over servers (``;`` between them, or a list).

    Raises:
        UrlError: empty, malformed, or servers of different schemes.
    """
    parts = value.split(";") if isinstance(value, str) else [p for v in value for p in v.split(";")]
    urls = tuple(Url.parse(part) for part in parts if part.strip())
    if not urls:
        raise UrlError("the URL is empty; write for example sqlite:// or redis://localhost/0")
    if len({u.scheme for u in urls}) > 1:
        raise UrlError(f"fail-over servers must share one scheme, found {', '.join(sorted({u.scheme for u in urls}))}")
    return urls


def redact_text(text: str) -> str:
    """Return a text that should be a URL without anything in it that may be a password.

    What cannot be read as a URL cannot be taken apart either, so everything before the last ``@`` and every query goes.
    """
    head, at, tail = text.rpartition("@")
    scheme = head.partition(":")[0] if _SCHEME.match(head.partition(":")[0]) else ""
    shown = f"{scheme}:***@{tail}" if at else text
    address, mark, _ = shown.partition("?")
    return address + ("?***" if mark else "")
