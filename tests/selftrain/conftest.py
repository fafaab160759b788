"""What several of these tests ask about."""

from __future__ import annotations

import pytest

from restill.selftrain.world import World

from .tiny import small_world


@pytest.fixture(scope="session")
def world() -> World:
    """A small World."""
    return small_world()
