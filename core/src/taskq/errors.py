"""Every error that taskq raises on purpose.

Each says what was tried, what was found and what to do; an error caused by a plugin names the distribution and its
version. Plugins raise these types (and let nothing of their client library escape): the kernel decides by type whether
an operation may be repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskq.message import SendFailure


class TaskQError(Exception):
    """Base of all errors raised by taskq and its plugins."""


# --------------------------------------------------------------------------------------------- configuration


class ConfigError(TaskQError):
    """A setting is unknown, malformed, or contradicts another one."""


class UnknownSetting(ConfigError):
    """A setting's name is not known; the message suggests the nearest known names."""


class NotSupported(ConfigError):
    """An option or call cannot be honoured by the chosen combination of components; nothing was done."""


class UrlError(ConfigError):
    """A broker or result store URL cannot be understood."""


# --------------------------------------------------------------------------------------------------- plugins


class PluginError(TaskQError):
    """Base of the errors about finding, loading and validating plugins."""


class PluginNotInstalled(PluginError):
    """No installed distribution offers the wanted component; the message says which one would."""


class PluginBroken(PluginError):
    """A plugin is installed but failed while it was imported or asked for its spec; the cause is chained."""


class PluginBlocked(PluginError):
    """A plugin is installed but the configuration forbids loading it."""


class PluginConflict(PluginError):
    """Two distributions offer the same kind and name and the configuration does not choose between them."""


class PluginIncompatible(PluginError):
    """A plugin was written for another version of the plugin interface."""


class PluginInvalid(PluginError):
    """A plugin's spec contradicts its metadata or its kind's rules."""


# ------------------------------------------------------------------------------------------------- transports


class TransportError(TaskQError):
    """Base of the errors that a transport raises.

    ``retryable`` is true where the same call may succeed later (a lost connection, a locked file), false where
    repeating it is pointless (wrong password, a table of another version).
    """

    retryable = True


class ConnectionFailed(TransportError):
    """The server could not be reached."""


class ConnectionLost(TransportError):
    """An established connection broke; what was in flight is unknown."""


class AuthenticationFailed(TransportError):
    """The server refused the credentials."""

    retryable = False


class SchemaMismatch(TransportError):
    """The server's tables, scripts or keys are of a version that this plugin cannot work with."""

    retryable = False


class QueueMissing(TransportError):
    """A queue does not exist and may not be created."""

    retryable = False


class StorageFull(TransportError):
    """The server or the disk has no room; nothing was accepted."""


class TransportClosed(TransportError):
    """The transport or consumer was used after ``close()``."""

    retryable = False


class PayloadTooLarge(TaskQError):
    """A message exceeds the transport's limit; nothing was sent."""


class SendFailed(TaskQError):
    """A message was not accepted by the broker.

    ``maybe_sent`` is true when the broker may have taken it all the same (the connection broke before the answer).
    """

    def __init__(self, message: str, failure: SendFailure | None = None) -> None:
        super().__init__(message)
        self.failure = failure

    @property
    def maybe_sent(self) -> bool:
        return self.failure is not None and self.failure.maybe_sent


class SendManyError(TaskQError):
    """Some messages of a ``send_many`` were not accepted; ``accepted``, ``failed`` and ``unknown`` list the results."""

    def __init__(self, message: str, accepted: Sequence[Any], failed: Sequence[Any], unknown: Sequence[Any]) -> None:
        super().__init__(message)
        self.accepted = accepted
        self.failed = failed
        self.unknown = unknown


# -------------------------------------------------------------------------------------------- stores, formats


class StoreError(TaskQError):
    """Base of the errors that a result store raises; ``retryable`` as in ``TransportError``."""

    retryable = True


class StoreUnavailable(StoreError):
    """The result store could not be reached, or the connection broke."""


class StoreSchemaMismatch(StoreError):
    """The store's tables or keys are of a version that this plugin cannot work with."""

    retryable = False


class OutcomeUnknown(StoreError):
    """A coordination operation was sent, but whether it took effect is not known."""


class ResultTooLarge(StoreError):
    """A result exceeds the store's limit or ``max_result_bytes``."""

    retryable = False


class ResultNotKept(TaskQError):
    """A result was asked for that nobody keeps; the message names the setting to change."""


class SerializationError(TaskQError):
    """Base of the errors of serializers and compressors."""


class EncodeError(SerializationError):
    """A value cannot be written in the chosen format."""


class DecodeError(SerializationError):
    """Bytes cannot be read: damaged, of another format, or beyond the size limit."""


class ContentNotAccepted(DecodeError):
    """A message's content type is not in ``accept``; it was not decoded."""


# ------------------------------------------------------------------------------------------------------ tasks


class TaskDefinitionError(TaskQError):
    """A task is declared wrongly, or twice under one name."""


class UnknownTask(TaskQError):
    """A task's name is not known here."""


class TaskArgumentsError(TaskQError, TypeError):
    """The arguments of a call do not fit the task's signature; nothing was sent."""


class TaskTimeout(TaskQError, TimeoutError):
    """A result did not arrive in time; the task may still run."""


class TaskFailure(TaskQError):
    """A task failed with an exception that cannot be rebuilt here.

    ``type_name`` is the exception's ``module.qualname``, ``remote_traceback`` its text where it was raised.
    """

    def __init__(self, message: str, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_traceback = remote_traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.type_name, self.remote_traceback)


class RemoteTraceback(Exception):
    """The ``__cause__`` of an exception that came back from a worker: its traceback there, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class TaskExpired(TaskQError):
    """A task was not started before its ``expires``."""


class TaskRevoked(TaskQError):
    """A task was cancelled before it ended."""


class TaskDead(TaskQError):
    """A task was moved to the dead-letter queue without a verdict of its own (crashes, undecodable, unknown name)."""


class SoftTimeLimitExceeded(TaskQError):
    """Raised inside a task whose soft time limit has passed; it may be caught to clean up."""


class TimeLimitExceeded(TaskQError):
    """A task ran beyond its hard time limit and was ended from outside, or cancelled where nothing can be ended."""


class TaskCancelled(BaseException):
    """Raised inside a running task that is revoked; it may be caught to clean up. Its caller sees TaskRevoked."""


class TaskInterrupted(BaseException):
    """Raised inside a running task when its worker must stop now; the message goes back to the queue, uncounted."""


class Retry(TaskQError):
    """Raised inside a task to run it again later: ``raise Retry(countdown=5)`` or ``raise self.retry(…)``.

    ``countdown`` is in seconds, None for the task's back-off; ``args``/``kwargs`` replace the arguments where given.
    """

    def __init__(
        self,
        countdown: float | None = None,
        *,
        exc: BaseException | None = None,
        task_args: Sequence[Any] | None = None,
        task_kwargs: Mapping[str, Any] | None = None,
        max_retries: int | None = None,
    ) -> None:
        super().__init__("retry" if exc is None else f"retry after {type(exc).__name__}: {exc}")
        self.countdown = countdown
        self.exc = exc
        self.task_args = task_args
        self.task_kwargs = task_kwargs
        self.max_retries = max_retries


class Reject(TaskQError):
    """Raised inside a task to send its message to the dead-letter queue at once, whatever the retry policy."""


class NotInTask(TaskQError, LookupError):
    """The task context was asked for outside a running task."""


class WorkerError(TaskQError):
    """A worker cannot start or go on."""
