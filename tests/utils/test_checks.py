import pytest

from steer_lightning.utils.checks import check_choice


def test_an_unknown_name_lists_what_is_known_and_what_is_near():
    with pytest.raises(
        ValueError,
        match=r"^Expected `method` to be one of \['dopri5', 'dopri8', 'euler'\], but got "
        r"'dopri4'\. Did you mean 'dopri\d' or 'dopri\d'\?$",
    ):
        check_choice("method", "dopri4", ["dopri5", "dopri8", "euler"])


def test_no_hint_where_nothing_is_near():
    with pytest.raises(ValueError, match=r"but got 'xyz'\.$"):
        check_choice("method", "xyz", ["dopri5", "euler"])
