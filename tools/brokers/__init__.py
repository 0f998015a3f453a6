"""A real Kafka and a real Redis on loopback, for development and tests: `python -m tools.brokers`."""
