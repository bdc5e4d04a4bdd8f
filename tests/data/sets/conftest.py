"""The published emoji, fetched once a session through the cache; skipped only where there is no npm to do it."""

import shutil

import pytest

from blip3o.data.sets import emoji
from blip3o.errors import ServiceError


@pytest.fixture(scope="session")
def published():
    try:
        return emoji.pictures()
    except ServiceError as error:
        if shutil.which("npm") is None:
            pytest.skip(str(error))
        raise
