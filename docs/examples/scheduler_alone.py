"""Use a scheduler by itself: it keeps schedules and says what is due; what happens then is the caller's business."""

import time

from taskq import TaskQ
from taskq.spi import Schedule

scheduler = TaskQ("clock", isolated=True).component("scheduler", "simple")
scheduler.open()
now = time.time()
scheduler.upsert(Schedule(id="backup", task="backup.run", rule="every 60"), now=now)
due = scheduler.lease("this program", now + 61, limit=10, ttl=30)
print([(fire.schedule.task, round(fire.due - now)) for fire in due])
scheduler.settle(due, now=now + 61)
scheduler.close()
