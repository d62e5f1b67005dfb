"""Send tasks from a program that knows neither their code nor a worker: by name, to a queue of SQLite's file."""

from taskq import TaskQ

app = TaskQ("reports")

sent = app.send_task("reports.build", [2026], {"format": "pdf"}, queue="reports")
many = app.send_many([app.signature("reports.build", [year]) for year in range(2020, 2026)])

print(sent.id, sent.state)  # UNKNOWN: sent, and nothing has been recorded about it yet
print(app.transport.stats(["reports", "default"]))
