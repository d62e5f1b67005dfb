"""Hook implementations of the json serializer."""

from __future__ import annotations

from taskq.spi import ComponentConfig, Serializer, SerializerSpec, hookimpl
from taskq_serializer_json.options import JsonOptions


def make(config: ComponentConfig) -> Serializer:
    """Make the serializer; imports the driver."""
    from taskq_serializer_json.serializer import JsonSerializer

    return JsonSerializer(config.options)


@hookimpl
def taskq_serializer(name: str) -> SerializerSpec:
    """Offer the serializer."""
    return SerializerSpec(
        spi="0.1",
        name=name,
        factory=make,
        options=JsonOptions,
        summary="JSON, readable by every language; datetimes, UUIDs, sets, dataclasses and more travel tagged",
    )
