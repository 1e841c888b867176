"""Every block of the pages that are run prints what the page says."""

import doctest
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs"


@pytest.mark.skipif(not PAGES.exists(), reason="the pages are not beside the tests")
@pytest.mark.parametrize("page", ["tutorial", "scikit_learn"])
def test_a_page_says_what_happens(page):
    found = doctest.testfile(
        str(PAGES / f"{page}.rst"),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert found.attempted > 20
    assert found.failed == 0
