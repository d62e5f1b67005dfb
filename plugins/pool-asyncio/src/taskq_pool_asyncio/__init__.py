"""The asyncio pool: jobs run as coroutines on an event loop."""
