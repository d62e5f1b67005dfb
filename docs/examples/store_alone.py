"""Use a result store by itself: records under an id until their time is over, and a counter that many may raise."""

from taskq import TaskQ
from taskq.spi import Op, OpKind, Record

store = TaskQ("store", result_store="sqlite://").store

store.put([Record("job-1", "SUCCESS", b"any bytes", ttl=3600)])
print(store.get(["job-1", "job-2"]))  # the second is None

if store.capabilities.coordination:
    counted = store.apply([Op(kind=OpKind.INCREMENT, key="visits", ttl=60)])
    print(counted[0].current, store.acquire("lock", "me", ttl=10), store.acquire("lock", "you", ttl=10))
