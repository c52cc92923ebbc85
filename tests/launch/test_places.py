"""Places for workers: which are places, given up and places again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrain.errors import UsageError
from launch.number_range import NumberRange
from launch.places import Places


@pytest.mark.parametrize(("text", "least", "most"), [("3", 3, 3), ("1:4", 1, 4), (" 2 : 2 ", 2, 2)])
def test_a_range_is_a_number_or_two(text: str, least: int, most: int) -> None:
    assert NumberRange.parse("--workers", text) == NumberRange(least, most)


@pytest.mark.parametrize("text", ["", "1:", ":4", "a:b", "1:2:3", "-1:2", "0", "0:2", "4:1", "1.5"])
def test_what_is_no_range_is_refused_as_it_was_given(text: str) -> None:
    with pytest.raises(UsageError, match=f"--workers is '?{text}"):
        NumberRange.parse("--workers", text)


def test_a_place_is_given_up_when_its_worker_is_lost_again_with_no_step_between() -> None:
    places = Places(NumberRange(1, 4))
    assert places.begin() == (0, 1, 2, 3)
    assert places.lose(1, stepped=True) is None
    assert places.begin() == (0, 1, 2, 3)
    assert places.lose(1, stepped=False) == 1
    # Its device stays unused: the others keep theirs.
    assert places.begin() == (0, 2, 3)
    assert places.lose(1, stepped=False) is None
    assert places.begin() == (0, 2, 3)
    assert places.lose(1, stepped=False) == 2
    assert places.begin() == (0, 3)


def test_a_step_between_two_losses_makes_the_second_a_first_one() -> None:
    places = Places(NumberRange(1, 2))
    for _ in range(5):
        places.begin()
        assert places.lose(0, stepped=True) is None
    places.begin()
    assert places.lose(0, stepped=False) == 0


def test_a_place_that_was_given_up_is_the_last_to_be_taken_again() -> None:
    places = Places(NumberRange(1, 4))
    places.lose(1, stepped=True)
    places.lose(1, stepped=False)
    places.resize(1)
    places.resize(3)
    assert places.begin() == (0, 2, 3)
    places.resize(4)
    assert places.begin() == (0, 1, 2, 3)


@given(
    st.integers(1, 5),
    st.integers(0, 4),
    st.lists(
        st.one_of(
            st.tuples(st.just("lose"), st.integers(0, 9), st.booleans()),
            st.tuples(st.just("resize"), st.integers(-1, 11), st.booleans()),
        ),
        max_size=30,
    ),
)
def test_places_are_distinct_and_in_range_whatever_happens(
    least: int, more: int, what: list[tuple[str, int, bool]]
) -> None:
    allowed = NumberRange(least, least + more)
    taken = Places(allowed)
    for kind, number, stepped in what:
        places = taken.begin()
        assert allowed.least <= len(places) == len(set(places)) <= allowed.most
        assert set(places) <= set(range(allowed.most))
        if kind == "lose":
            taken.lose(number % len(places), stepped=stepped)
            assert len(taken) in (len(places), len(places) - 1)
        elif allowed.least <= number <= allowed.most:
            taken.resize(number)
            assert len(taken) == number
        else:
            with pytest.raises(UsageError, match=f"{number} workers are asked for"):
                taken.resize(number)
