"""Use a pool by itself: it runs jobs of any runtime on its threads and reports their ends in batches."""

import queue
import time

from taskq.spi import DONE, Job, Outcome, PoolConfig, TaskLimits
from taskq_pool_threads.plugin import taskq_pool


class Shout:
    """The runtime: what a job means. (Also asked for: is_async, limits, start, stop.)"""

    def execute(self, job):
        return Outcome(DONE, "SUCCESS", job.payload.upper())

    def is_async(self, task):
        return False

    def limits(self, task):
        return TaskLimits()

    def start(self):
        pass

    stop = start


class Sink:
    """Where the pool reports."""

    def __init__(self):
        self.ends = queue.Queue()

    def started(self, keys):
        pass

    def finished(self, batch):
        self.ends.put(batch)

    def returned(self, keys):
        print("not run:", keys)

    def crashed(self, running, unstarted, reason):
        print("crashed:", reason)


spec, sink = taskq_pool("threads"), Sink()
pool = spec.factory(PoolConfig(concurrency=4, options=spec.options()))
pool.start(Shout(), sink)
accepted = pool.submit([Job(key, word, "shout", "none", 1) for key, word in enumerate([b"one", b"two", b"three"])])
seen = []
while len(seen) < accepted:
    seen += [(end.key, end.outcome.result) for end in sink.ends.get(timeout=10)]
print(sorted(seen))
pool.stop(time.monotonic() + 5)
