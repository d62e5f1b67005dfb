"""A task class: one instance per process holds what its runs share, here a database connection."""

import sqlite3
import threading

from taskq import Task, TaskQ

app = TaskQ("notes", broker="memory://", isolated=True)


class AddNote(Task):
    name = "notes.add"
    max_retries = 5
    retry_on = (sqlite3.OperationalError,)

    def process_started(self) -> None:  # once in every process that runs tasks
        self.connection = sqlite3.connect(":memory:", check_same_thread=False)
        self.connection.execute("CREATE TABLE notes (text TEXT)")
        self.lock = threading.Lock()

    def process_stopping(self) -> None:
        self.connection.close()

    def run(self, text: str) -> int:
        with self.lock:
            self.connection.execute("INSERT INTO notes VALUES (?)", (text,))
            return self.connection.execute("SELECT count(*) FROM notes").fetchone()[0]

    def on_failure(self, request, error) -> None:
        print(f"{request.id} failed for good: {error}")


add_note = app.register(AddNote)

with app.worker(pool="threads", concurrency=2):
    print(sorted(add_note.delay(text).get(timeout=10) for text in ("milk", "bread", "tea")))
app.close()
