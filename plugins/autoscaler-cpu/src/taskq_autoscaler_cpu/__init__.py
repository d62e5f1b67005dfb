"""The CPU autoscaler: more slots while there is work and the CPU has time left."""
