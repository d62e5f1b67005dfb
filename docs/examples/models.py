"""Models as arguments and results: sent as plain data, checked and rebuilt from the annotations. pydantic works too."""

from msgspec import Struct

from taskq import TaskQ

app = TaskQ("crm", broker="memory://", isolated=True)


class Customer(Struct):
    name: str
    visits: int = 0


@app.task(name="crm.greet")
def greet(customer: Customer) -> Customer:
    return Customer(customer.name.title(), customer.visits + 1)


with app.worker():
    print(greet.delay(Customer("ada")).get(timeout=10))
    refused = app.send_task("crm.greet", [{"name": 7}])
    print(repr(refused.get(timeout=10, propagate=False)))
app.close()
