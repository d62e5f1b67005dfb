from taskq import TaskQ

app = TaskQ("hello")


@app.task
def add(x: int, y: int) -> int:
    return x + y
