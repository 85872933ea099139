"""A plan: what a run will need of memory, time, storage and network, before anybody queues."""
