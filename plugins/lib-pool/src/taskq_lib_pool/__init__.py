"""What the pools of coroutines and greenlets share: their reports to the worker."""
