"""Model files: what is in a GGUF, what memory it takes, and how it comes to this machine."""
