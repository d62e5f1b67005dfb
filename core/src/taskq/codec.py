"""Codec: values to body bytes and back, through the chosen serializer and an ordered chain of transforms.

A transform is ``[name, …parameters]`` in the header, applied in order when sending and undone in reverse. Version 1
knows compressors; encryption, signing and offloading take further names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from taskq.envelope import TRANSFORMS, Header
from taskq.errors import ContentNotAccepted, DecodeError, PayloadTooLarge, PluginError
from taskq.spi.formats import Compressor, Serializer

Transforms = list[list[Any]]


class CodecSettings(Struct, frozen=True, kw_only=True):
    """Sizes in bytes; ``compress_above`` matters where a compressor is set."""

    serializer: str = "json"
    result_serializer: str = "json"
    accept: tuple[str, ...] = ("json",)
    compressor: str | None = None
    compress_above: int = 16384
    max_decompressed_bytes: int = 64 << 20
    max_payload_bytes: int | None = None


class Codec:
    """Encodes and decodes bodies; loads serializers and compressors by name at first need."""

    def __init__(
        self,
        settings: CodecSettings,
        load_serializer: Callable[[str], Serializer],
        load_compressor: Callable[[str], Compressor],
    ) -> None:
        self.settings = settings
        self._load_serializer = load_serializer
        self._load_compressor = load_compressor
        self._serializers: dict[str, Serializer] = {}
        self._compressors: dict[str, Compressor] = {}
        self._compressor = self.compressor(settings.compressor) if settings.compressor else None

    def serializer(self, name: str) -> Serializer:
        """Return the serializer for sending.

        Raises:
            PluginError: not installed, broken or blocked.
        """
        found = self._serializers.get(name)
        if found is None:
            found = self._serializers[name] = self._load_serializer(name)
        return found

    def compressor(self, name: str) -> Compressor:
        """Return a compressor. Raises PluginError as ``serializer``."""
        found = self._compressors.get(name)
        if found is None:
            found = self._compressors[name] = self._load_compressor(name)
        return found

    def reader(self, content_type: str) -> Serializer:
        """Return the serializer for data that came from elsewhere.

        Raises:
            ContentNotAccepted: not named in ``accept``.
            DecodeError: accepted, but no plugin reads it.
        """
        if content_type not in self.settings.accept:
            raise ContentNotAccepted(
                f"content type {content_type!r} is not accepted here (accept = {list(self.settings.accept)}); "
                "add it to the setting `accept` if every sender to this queue may be trusted with it"
            )
        try:
            return self.serializer(content_type)
        except PluginError as error:
            raise DecodeError(f"content type {content_type!r} is accepted, but cannot be read: {error}") from error

    def encode(self, value: Any, serializer: Serializer) -> tuple[bytes, Transforms | None]:
        """Serialize a value and compress it where it is long enough.

        Raises:
            EncodeError: the serializer cannot write it.
            PayloadTooLarge: beyond ``max_payload_bytes``.
        """
        data = serializer.dumps(value)
        transforms: Transforms | None = None
        if self._compressor is not None and len(data) > self.settings.compress_above:
            smaller = self._compressor.compress(data)
            if len(smaller) < len(data):
                data, transforms = smaller, [[self._compressor.encoding]]
        limit = self.settings.max_payload_bytes
        if limit is not None and len(data) > limit:
            raise PayloadTooLarge(
                f"the encoded arguments take {len(data)} bytes, max_payload_bytes is {limit}; "
                "store large data elsewhere and pass a reference, or set a compressor"
            )
        return data, transforms

    def decode(self, data: bytes, content_type: str, transforms: Sequence[Sequence[Any]] | None) -> Any:
        """Undo the transforms and deserialize.

        Raises:
            DecodeError: damaged, unknown transform, not accepted, or beyond ``max_decompressed_bytes``.
        """
        for transform in reversed(transforms or ()):
            name = transform[0]
            try:
                compressor = self.compressor(name)
            except PluginError as error:
                raise DecodeError(f"the message went through {name!r}, which cannot be undone here: {error}") from error
            data = compressor.decompress(data, max_size=self.settings.max_decompressed_bytes)
        return self.reader(content_type).loads(data)

    def decode_arguments(self, header: Header, body: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments of a message.

        Raises:
            DecodeError: as ``decode``, or the body is not ``[args, kwargs]``.
        """
        value = self.decode(body, header.content_type, header.get(TRANSFORMS))
        if (
            isinstance(value, list | tuple)
            and len(value) == 2
            and isinstance(value[0], list | tuple)
            and isinstance(value[1], dict)
        ):
            return list(value[0]), value[1]
        raise DecodeError(f"the body of task {header.task} is not [args, kwargs] but {type(value).__name__}")
