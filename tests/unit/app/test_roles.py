"""What a process calls itself."""

import pytest

from pice.app.roles import Roles


@pytest.mark.parametrize(
    ("roles", "name"),
    [
        (Roles(cloud=True), "cloud"),
        (Roles(sites=("lyon", "oslo")), "lyon+oslo"),
        (Roles(collector=True), "collector"),
        (Roles(cloud=True, sites=("lyon",), collector=True), "cloud+lyon+collector"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_process_is_named_for_all_that_it_serves(roles: Roles, name: str) -> None:
    assert roles.name == name
