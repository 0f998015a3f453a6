"""Request -> plan; segment -> site."""
