"""Options of a plugin, in the code, a file, the environment or the URL; what is unknown or malformed is refused."""

from taskq import TaskQ
from taskq.errors import ConfigError

app = TaskQ(
    "careful",
    broker="sqlite://?synchronous=NORMAL",  # this one broker
    transports={"sqlite": {"poll_interval": 0.5}},  # in a file: [tool.taskq.transports.sqlite], poll_interval = 0.5
    isolated=True,
)
app.transport  # noqa: B018  opened at the first use
for row in app.config.rows():
    print(f"{row.name} = {row.value!r}, from {row.origin}")
app.close()

try:
    TaskQ("wrong", broker="sqlite://?sinchronous=NORMAL", isolated=True).transport  # noqa: B018
except ConfigError as error:
    print(error)
