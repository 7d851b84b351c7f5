"""How many replicas: the autoscaler's own formula, and queues with measured service times, in simulated time."""
