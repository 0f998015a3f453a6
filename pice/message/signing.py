"""That a candidate comes from the site it names: HMAC-SHA256 of its bytes with the site's key (P10)."""

import hmac

SIGNATURE = "signature"
"""Name of the header that carries it."""


def site_key(secret: str, site: str) -> str:
    """The key of a site, 64 hex characters. It follows from the cluster's secret, and the secret not from it."""
    return _hmac(secret, f"pice-site:{site}".encode())


def signature(key: str, payload: bytes) -> bytes:
    """64 hex characters: `openssl dgst -sha256 -hmac KEY` gives the same."""
    return _hmac(key, payload).encode()


def is_signed(key: str, payload: bytes, given: bytes) -> bool:
    """Whether a signature is that of these bytes with this key. How long that takes tells nothing of the right one."""
    return hmac.compare_digest(signature(key, payload), given)


def _hmac(key: str, message: bytes) -> str:
    return hmac.digest(key.encode(), message, "sha256").hex()
