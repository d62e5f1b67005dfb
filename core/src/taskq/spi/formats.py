"""Serializers and compressors: pure functions on bytes, safe on any thread."""

from __future__ import annotations

from typing import Any, Protocol


class Serializer(Protocol):
    """Writes and reads a task's arguments and results."""

    @property
    def content_type(self) -> str:
        """Short name that travels in the header, as ``json``; equal to the plugin's name."""
        ...

    @property
    def trusted(self) -> bool:
        """True where reading is dangerous with data from strangers (pickle): only read when named in ``accept``."""
        ...

    def dumps(self, value: Any) -> bytes:
        """Encode a value.

        Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: EncodeError naming the part and its type.
        """
        ...

    def loads(self, data: bytes) -> Any:
        """Decode bytes that ``dumps`` made.

        Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: DecodeError, never another exception.
        """
        ...


class Compressor(Protocol):
    """Makes payloads smaller."""

    @property
    def encoding(self) -> str:
        """Short name that travels in the header, as ``zlib``; equal to the plugin's name."""
        ...

    def compress(self, data: bytes) -> bytes:
        """Compress bytes. Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: none."""
        ...

    def decompress(self, data: bytes, *, max_size: int) -> bytes:
        """Decompress bytes, stopping as soon as the output would exceed ``max_size`` bytes.

        Blocking: no. Threads: any. Idempotence: yes. Order: free. Errors: DecodeError, never another exception.
        """
        ...
