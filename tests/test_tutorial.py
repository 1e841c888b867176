"""Every block of the tutorial runs, and prints what the page says."""

import doctest
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.rst"


@pytest.mark.skipif(not PAGE.exists(), reason="the pages are not beside the tests")
def test_the_tutorial_says_what_happens():
    found = doctest.testfile(
        str(PAGE),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert found.attempted > 20
    assert found.failed == 0
