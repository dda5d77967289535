"""A browser for the tests of pages; started once."""

import pytest


@pytest.fixture(scope="session")
def browser():
    from browser import started

    page = started()
    yield page
    page.driver.quit()
