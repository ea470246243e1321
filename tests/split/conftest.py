"""The pipeline that the ControlNets of these tests are for."""

import pytest
from splitting import base_folder

from cipherdm.split import load_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Folder of a very small pipeline that predicts noise."""
    return base_folder(tmp_path_factory.mktemp("split") / "model")


@pytest.fixture(scope="session")
def pipeline(base):
    """That pipeline, with nothing in it to be trained."""
    return load_base(base)
