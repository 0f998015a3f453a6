"""A candidate is signed with its site's key, and with no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.message.signing import is_signed, signature, site_key

PARIS, ROME = site_key("between us", "paris"), site_key("between us", "rome")
PAYLOAD = b'{"x":1}'


def test_keys_and_signatures_are_those_that_openssl_makes() -> None:
    """printf pice-site:paris | openssl dgst -sha256 -hmac 'between us', and the same with the key over the payload."""
    assert PARIS == "e85c637b4bfab71af491b42b950eb4e0e65a6178dd1dcc5ce61c30fc3eeb183b"
    assert signature(PARIS, PAYLOAD) == b"5c65b65820cf8308dd9341be9a9ae7ee031dbd634cfd719215ddd2017c1f4764"


def test_signature_with_the_sites_own_key_is_accepted() -> None:
    assert is_signed(PARIS, PAYLOAD, signature(PARIS, PAYLOAD))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"\xff\x00", id="junk"),
        pytest.param(signature(PARIS, PAYLOAD)[:-1], id="cut short"),
        pytest.param(signature(PARIS, PAYLOAD) + b"0", id="too long"),
        pytest.param(signature(PARIS, PAYLOAD + b" "), id="of other bytes"),
        pytest.param(signature(ROME, PAYLOAD), id="with the key of another site"),
        pytest.param(signature("between us", PAYLOAD), id="with the secret itself"),
        pytest.param(signature(site_key("a guess", "paris"), PAYLOAD), id="with a key from another secret"),
    ],
)
def test_any_other_signature_is_refused(given: bytes) -> None:
    assert not is_signed(PARIS, PAYLOAD, given)


@given(st.binary(), st.binary())
def test_signature_holds_for_just_its_own_bytes(payload: bytes, other: bytes) -> None:
    assert is_signed(PARIS, other, signature(PARIS, payload)) is (payload == other)
