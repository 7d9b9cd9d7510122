"""The synthetic data set, prepared once."""

import pytest

from distcifar.config import DataConfig
from distcifar.data.prepare import PreparedData, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    config = DataConfig(dataset="synthetic", validation=256)
    return prepare(config, tmp_path_factory.mktemp("prepared"), announce=lambda text: None)
