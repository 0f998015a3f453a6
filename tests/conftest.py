"""What all tests share."""

from hypothesis import settings

settings.register_profile("pice", deadline=None)
settings.load_profile("pice")
