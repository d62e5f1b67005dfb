"""What taskq's Redis transport and result store share."""

from __future__ import annotations

from taskq_lib_redis.connection import Errors, Links, RedisLink, Script, ServerError, Target
from taskq_lib_redis.records import (
    PUT_LUA,
    RedisResults,
    decode_pairs,
    decode_record,
    encode_record,
    record_arguments,
)

__all__ = [
    "PUT_LUA",
    "Errors",
    "Links",
    "RedisLink",
    "RedisResults",
    "Script",
    "ServerError",
    "Target",
    "decode_pairs",
    "decode_record",
    "encode_record",
    "record_arguments",
]
