"""The simple autoscaler: slots by what is busy and what waits, smoothed."""
