"""What all tests share."""

from hypothesis import HealthCheck, settings

settings.register_profile("pice", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy
settings.load_profile("pice")
