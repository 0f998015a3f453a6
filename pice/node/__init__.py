"""The loops; each reads one topic and writes the next."""
