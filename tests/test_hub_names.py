"""Names on the Hub are checked as the Hub does."""

import pytest

from siglip_flowers.base.text import is_hub_id


@pytest.mark.parametrize("name", ["garden/flowers", "a/b", "Org-1/x_y.z"])
def test_a_name_of_the_hub(name):
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name",
    [
        *("flowers", "a/b/c", "../x", "a/-b", "a/b.git", "a/b..c", "a b/c", "a/b\n"),
        "a/" + "x" * 97,
    ],
)
def test_no_name_of_the_hub(name):
    assert not is_hub_id(name)
