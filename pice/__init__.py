"""Progressive LLM inference between a cloud and many edge sites."""

__version__ = "0.1.0"
