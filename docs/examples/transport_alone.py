"""Use a transport as a plain message queue: no application, no tasks, payloads of any bytes."""

from taskq.spi import Outbound, Settlement, Subscription, TransportConfig, Url
from taskq_transport_memory.plugin import taskq_transport

spec = taskq_transport("memory")
transport = spec.factory(TransportConfig(urls=(Url.parse("memory://"),), options=spec.options()))
transport.open()
transport.send([Outbound("id-1", "letters", b"any bytes"), Outbound("id-2", "letters", b"more bytes", priority=9)])

consumer = transport.consumer()
consumer.credit(100, 1_000_000)
consumer.subscribe([Subscription("letters")])
deliveries = consumer.fetch(10, wait=1.0).deliveries
print([d.payload for d in deliveries])
consumer.settle([Settlement(d.receipt) for d in deliveries])
transport.close()
