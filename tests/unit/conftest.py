"""The two pinned base encoders, where this machine has them."""

import pytest

from shared.model.weights import PINNED, base_folder, cache_dir


@pytest.fixture(params=PINNED, ids=lambda name: name.rpartition("/")[2], scope="session")
def real_base(request):
    """The folder of a pinned base encoder; its tests are skipped where it was never fetched."""
    if not (cache_dir() / "base" / request.param.replace("/", "--")).exists():
        pytest.skip(f"{request.param} is not in {cache_dir()}")
    return base_folder(request.param)
