"""Use a serializer and a compressor by themselves: values to bytes and back."""

import datetime as dt
from decimal import Decimal

from taskq import TaskQ

app = TaskQ("formats", isolated=True)
json, zlib = app.component("serializer", "json"), app.component("compressor", "zlib")

data = json.dumps({"at": dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "price": Decimal("9.90"), "tags": {"a", "b"}})
print(data)
print(json.loads(zlib.decompress(zlib.compress(data), max_size=10_000)))
