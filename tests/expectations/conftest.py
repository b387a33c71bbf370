import pytest
import zoo
from torch import Tensor


@pytest.fixture
def clips() -> Tensor:
    return zoo.make_clips()
