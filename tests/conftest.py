import os
from pathlib import Path

import pytest
import torch
import transformers as tf
from videos import write_classes


def pytest_configure():
    """Give each process one thread: the tests themselves run in parallel."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training and two validation videos for each of two classes."""
    return write_classes(tmp_path / "videos", val=2)


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small image classifier of transformers, for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "vit"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tf.ViTForImageClassification(tf.ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(path)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return str(path)
