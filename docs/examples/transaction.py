"""Send a task inside the program's own database transaction: it is sent if, and only if, that transaction commits.

The broker's tables are in the same database as the program's. The same works on PostgreSQL, MySQL and MariaDB.
"""

import tempfile

import sqlalchemy as sa

from taskq import TaskQ

# On SQLite, where only one connection may write, nothing must be declared beside an open transaction: declare="none".
database = f"{tempfile.mkdtemp()}/shop.db"
app = TaskQ("shop", broker=f"sqlite+sqlalchemy:///{database}", isolated=True, declare="none")
engine = sa.create_engine(f"sqlite:///{database}")


@app.task(name="shop.send_invoice")
def send_invoice(order: int) -> None: ...


app.connect()  # makes taskq's tables now: SQLite could not while a transaction of ours is open
with engine.begin() as connection:
    connection.execute(sa.text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))

with engine.begin() as connection:
    connection.execute(sa.text("INSERT INTO orders VALUES (1)"))
    send_invoice.apply_async((1,), transaction=connection)

try:
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO orders VALUES (2)"))
        send_invoice.apply_async((2,), transaction=connection)
        raise RuntimeError("the order is refused")
except RuntimeError:
    pass

print("waiting invoices:", app.transport.stats(["default"])["default"].ready)  # 1: of the order that was committed
app.close()
engine.dispose()
