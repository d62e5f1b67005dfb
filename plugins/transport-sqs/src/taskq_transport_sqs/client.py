"""boto3, with typed errors and bounded retries: nothing of botocore's exceptions leaves this module.

Two clients of one session share a server: one for calls that answer at once, one for long polls, which need a longer
read timeout. Both are safe on any thread and keep a pool of connections.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import boto3
import botocore.exceptions as boto_errors
import botocore.loaders
import botocore.session
from botocore.config import Config

from taskq.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    QueueMissing,
    TransportError,
    UrlError,
)
from taskq.spi import Url
from taskq_transport_sqs.options import SqsOptions

_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d+\Z")
_ACCOUNT = re.compile(r"\d{12}\Z")
_TRIES = 3
_FIRST_PAUSE = 0.05
_EMULATOR_REGION = "elasticmq"
_NOBODY = "taskq"
"""Credentials for emulators, which do not check them; boto would look for some all over the machine."""
_MOST_CONNECTIONS = 200
_NOT_FOUND = frozenset({"QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"})
_REFUSED = frozenset({
    "AccessDenied", "AccessDeniedException", "AuthFailure", "ExpiredToken", "ExpiredTokenException",
    "IncompleteSignature", "InvalidAccessKeyId", "KMS.AccessDeniedException", "KmsAccessDenied",
    "InvalidClientTokenId", "InvalidSecurity", "InvalidSignatureException",
    "MissingAuthenticationToken", "MissingAuthenticationTokenException", "NotAuthorized", "OptInRequired",
    "SignatureDoesNotMatch", "UnrecognizedClientException",
})  # fmt: skip
_NO_RIGHT = frozenset({"AccessDenied", "AccessDeniedException", "NotAuthorized"})
_BUSY = frozenset({
    "OverLimit", "PriorRequestNotComplete", "RequestLimitExceeded", "RequestThrottled", "ServiceUnavailable",
    "SlowDown", "Throttling", "ThrottledException", "ThrottlingException", "TooManyRequestsException",
    "KmsThrottled", "KMS.ThrottlingException", "AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently",
})  # fmt: skip
_NOT_OFFERED = frozenset({501, 505})
"""Statuses of a server that will never do this, among those of one that failed to do it now."""
_NO_SQS = "it is not SQS that answers there; check host, port and endpoint, and what proxies there are in between"
# Raised before anything was written to the server.
_UNSENT = (boto_errors.EndpointConnectionError, boto_errors.ConnectTimeoutError, boto_errors.ProxyConnectionError)
_NO_CREDENTIALS = (
    boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError, boto_errors.CredentialRetrievalError,
    boto_errors.NoAuthTokenError, boto_errors.TokenRetrievalError,
)  # fmt: skip

_sharing: Final = threading.Lock()
_shared_loader: list[botocore.loaders.Loader] = []


def refused(why: str) -> TransportError:
    """Return an error that trying again would not help."""
    error = TransportError(why)
    error.retryable = False
    return error


class Ambiguous(ConnectionLost):
    """The connection broke, or the server failed, after a request had been written: it may have taken effect."""


class NoSqs(Ambiguous):
    """Something else answered."""


class Target:
    """Which server, whose queues and with which credentials; made of URL and options without any I/O."""

    def __init__(self, urls: tuple[Url, ...], options: SqsOptions) -> None:
        if len(urls) != 1:
            raise UrlError("SQS has one endpoint per region, so a broker is one URL, not several with ';' between them")
        (url,) = urls
        self.options = options
        self.endpoint: str | None = options.endpoint or None
        self.region: str | None = options.region or None
        self.account = options.account
        self.key: str | None = None
        self.secret: str | None = None
        emulator = False
        if url.host and url.port is None and _REGION.match(url.host):
            self.region = self.region or url.host
        elif url.host and url.port is not None:
            emulator = True
            if self.endpoint is not None:
                raise UrlError(f"{url} names an emulator's host and port, and option endpoint another server; keep one")
            host = f"[{url.host}]" if ":" in url.host else url.host
            self.endpoint = f"http://{host}:{url.port}"
            self.region = self.region or _EMULATOR_REGION
        elif url.host:
            raise UrlError(
                f"{url} names neither an AWS region nor a server: write sqs://eu-central-1, sqs:// for boto's own "
                "region, or sqs://localhost:9324 for an emulator"
            )
        path = url.path.strip("/")
        if path:
            if not _ACCOUNT.match(path):
                raise UrlError(f"the path of {url} is not the 12 digits of an AWS account: write sqs://REGION/ACCOUNT")
            self.account = self.account or path
        if url.username or url.password:
            if self.endpoint is None:
                raise UrlError(
                    f"{url} has credentials, which belong into boto's own configuration (environment, profile, role); "
                    "in a URL they are taken for emulators only"
                )
            self.key, self.secret = url.username or _NOBODY, url.password or _NOBODY
        elif emulator:
            self.key = self.secret = _NOBODY
        self.name = (
            f"SQS at {self.endpoint}" if self.endpoint else f"Amazon SQS in {self.region or 'the region of boto'}"
        )

    @property
    def is_amazon(self) -> bool:
        """Whether it is the service itself, which keeps messages on several machines."""
        host = (self.endpoint or "").rpartition("//")[2].partition("/")[0].partition(":")[0]
        return self.endpoint is None or host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


def _loader(session: botocore.session.Session) -> botocore.loaders.Loader:
    """Return the one loader of service models, whose reading takes longer than all else about a client."""
    with _sharing:
        if not _shared_loader:
            _shared_loader.append(session.get_component("data_loader"))
        return _shared_loader[0]


class Client:
    """Calls to one server: each is tried a few times where that is safe, and fails with a type of ours."""

    def __init__(self, target: Target) -> None:
        self.target = target
        options = target.options
        try:
            base = botocore.session.Session(profile=options.profile or None)
            base.register_component("data_loader", _loader(base))
            session = boto3.session.Session(
                botocore_session=base,
                aws_access_key_id=target.key,
                aws_secret_access_key=target.secret,
                region_name=target.region,
            )
            self._session = session
            self._quick = self._make(session, 0)
            self._polls = self._make(session, options.poll_wait)
        except boto_errors.NoRegionError:
            raise ConfigError(
                "no AWS region is configured: write it into the URL (sqs://eu-central-1), or set AWS_DEFAULT_REGION"
            ) from None
        except _NO_CREDENTIALS as error:
            raise self._no_credentials(error) from error
        except (boto_errors.BotoCoreError, ValueError) as error:
            raise ConfigError(f"boto3 cannot be set up for {target.name}: {error}") from error

    def _make(self, session: boto3.session.Session, poll: float) -> Any:
        options = self.target.options
        return session.client(
            "sqs",
            endpoint_url=self.target.endpoint,
            config=Config(
                connect_timeout=options.connect_timeout,
                read_timeout=options.timeout + poll,
                max_pool_connections=_MOST_CONNECTIONS,
                parameter_validation=False,  # a third of what a small call costs, and we make the parameters
                tcp_keepalive=True,
                retries={"mode": "standard", "total_max_attempts": 1},  # retried here: only we know what may be doubled
            ),
        )

    @property
    def region(self) -> str:
        """The region that boto settled on."""
        found: str = self._quick.meta.region_name
        return found

    def close(self) -> None:
        """Close idle connections; one that is in use closes when its call ends."""
        self._quick.close()
        self._polls.close()

    def _no_credentials(self, error: Exception) -> AuthenticationFailed:
        return AuthenticationFailed(
            f"{self.target.name}: {error}; boto looks for credentials in the environment, ~/.aws, and the machine's or "
            "container's role; option profile names another profile"
        )

    @staticmethod
    def is_known(error: AuthenticationFailed) -> bool:
        """Whether the server knows these credentials, and they only lack a right."""
        cause = error.__cause__
        return isinstance(cause, boto_errors.ClientError) and cause.response["Error"].get("Code") in _NO_RIGHT

    # ----------------------------------------------------------------------------------------------------- calls

    def call(self, operation: str, **parameters: Any) -> Any:
        """Call the server, a few times where that may help.

        Raises:
            AuthenticationFailed, QueueMissing, ConnectionFailed: nothing was done.
            Ambiguous: it may have been done.
            TransportError: the server refused it.
        """
        return self._repeat(getattr(self._quick, operation), operation, _TRIES, parameters)

    def url(self, operation: str, **parameters: Any) -> str:
        """As ``call``, for the URL of a queue."""
        found = self.call(operation, **parameters).get("QueueUrl")
        if not isinstance(found, str):
            raise refused(f"{self.target.name} answered {operation} without a queue's URL: {_NO_SQS}")
        return found

    def call_once(self, operation: str, **parameters: Any) -> Any:
        """As ``call``, for who must know of each try."""
        return self._repeat(getattr(self._quick, operation), operation, 1, parameters)

    def poll(self, **parameters: Any) -> Any:
        """Receive messages; not repeated here, as the caller asks again anyway. Errors: as ``call``."""
        client = self._polls if parameters["WaitTimeSeconds"] else self._quick
        return self._repeat(client.receive_message, "receive_message", 1, parameters)

    def _repeat(self, method: Callable[..., Any], operation: str, tries: int, parameters: dict[str, Any]) -> Any:
        pause = _FIRST_PAUSE
        doubtful = False
        while True:
            tries -= 1
            try:
                answer = method(**parameters)
                kind = str(answer["ResponseMetadata"].get("HTTPHeaders", {}).get("content-type", ""))
                if not kind.startswith("text/") or "xml" in kind:
                    return answer
                problem: TransportError = NoSqs(f"{self.target.name} answered {operation} with {kind}: {_NO_SQS}")
            except (boto_errors.BotoCoreError, boto_errors.ClientError) as error:
                problem = self._translate(error, operation, parameters)
                problem.__cause__ = error
            except OSError as error:
                problem = Ambiguous(f"{self.target.name}: the connection broke during {operation}: {error}")
                problem.__cause__ = error
            doubtful = doubtful or isinstance(problem, Ambiguous)
            if tries <= 0 or not problem.retryable or isinstance(problem, QueueMissing):
                if doubtful and not isinstance(problem, Ambiguous):
                    problem = Ambiguous(f"{problem}; an earlier try may have been taken")
                raise problem
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause *= 4

    def _translate(self, error: Exception, operation: str, parameters: dict[str, Any]) -> TransportError:
        name = self.target.name
        if isinstance(error, boto_errors.ClientError):
            return self._answer(error, operation, parameters)
        if isinstance(error, _UNSENT):
            return ConnectionFailed(f"{name} cannot be reached: {error}")
        if isinstance(error, _NO_CREDENTIALS):
            return self._no_credentials(error)
        if isinstance(error, boto_errors.SSLError):
            return ConnectionFailed(f"{name}: no secure connection: {error}")
        if isinstance(error, boto_errors.HTTPClientError):
            return Ambiguous(f"{name}: the connection broke, or no answer came in time, during {operation}: {error}")
        return Ambiguous(f"{name}: {operation} failed: {error}")

    def explain(self, error: ConnectionFailed) -> TransportError:
        """Tell a region that does not exist, for which waiting is in vain, from a server that is away."""
        if self.target.endpoint is not None or self.region in self._regions():
            return error
        host = self._quick.meta.endpoint_url.rpartition("//")[2].partition("/")[0]
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, 443)
            return error
        return refused(
            f"{self.target.name}: there is no such region, as far as boto and the name service know ({host} has no "
            "address); correct it in the URL or in option region"
        )

    def _regions(self) -> set[str]:
        session = self._session
        return {r for p in session.get_available_partitions() for r in session.get_available_regions("sqs", p)}

    def _answer(self, error: boto_errors.ClientError, operation: str, parameters: dict[str, Any]) -> TransportError:
        details = error.response.get("Error", {})
        code, text = str(details.get("Code", "")), str(details.get("Message", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
        where = parameters.get("QueueUrl") or parameters.get("QueueName") or ""
        what = f"{self.target.name} refused {operation}{f' of {where}' if where else ''}: {code} {text}".rstrip()
        if code in _NOT_FOUND:
            return QueueMissing(f"{what}; declare the queue with mode 'create', or correct its name")
        if code in _BUSY:
            return TransportError(what)
        if code in _REFUSED or status in (401, 403):
            return AuthenticationFailed(f"{what}; check the credentials, and their rights on the queue")
        if (status >= 500 and status not in _NOT_OFFERED) or not status:
            return Ambiguous(what)
        return refused(f"{what}: {_NO_SQS}" if code.isdigit() else what)
