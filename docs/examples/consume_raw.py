"""Take raw deliveries from a queue without the task layer, and decide about each one."""

from taskq import TaskQ, envelope
from taskq.spi import Settlement, Subscription

app = TaskQ("raw")
app.send_many([app.signature("some.task", [n]) for n in range(3)])

consumer = app.transport.consumer()
consumer.credit(10, 1_000_000)  # at most so many messages and bytes held at once
consumer.subscribe([Subscription("default")])
for delivery in consumer.fetch(10, wait=1.0).deliveries:
    header, body = envelope.decode(delivery.payload)
    print(header.task, header.id, delivery.payload[body:])
    consumer.settle([Settlement(delivery.receipt)])  # done; Settlement(delivery.receipt, RELEASE) gives it back
consumer.close()
