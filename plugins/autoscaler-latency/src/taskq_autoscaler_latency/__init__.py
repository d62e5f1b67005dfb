"""The latency autoscaler: as many slots as keep tasks from waiting longer than an objective."""
