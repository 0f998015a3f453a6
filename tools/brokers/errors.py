"""Why there are no brokers."""


class NoBrokers(Exception):
    """None can be had here; the message says what would have to be there."""
