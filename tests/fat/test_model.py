"""Random calls and a model: equal, clean and complete after each unmount."""

from __future__ import annotations

import pytest

from tests.fat import model
from tests.fat.images import GEOMETRIES

STEPS = 2000


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_as_a_model_of_dictionaries(geometry: str) -> None:
    machine = model.run(geometry, STEPS, seed=1)
    if machine.device.size < 5 << 20:
        assert machine.full > 20, "it was to be full now and then"
    machine.empty()
