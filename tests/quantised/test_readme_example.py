"""The README's example of a quantized backbone, on a small one that is not downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo
from quantised.quantizing import from_pretrained, needs

README = Path(__file__).parents[2] / "README.md"
EXAMPLE = """
from transformers import AutoModelForImageClassification, BitsAndBytesConfig

int8 = BitsAndBytesConfig(load_in_8bit=True)  # or load_in_4bit=True, or TorchAoConfig(Int8WeightOnlyConfig())
backbone = AutoModelForImageClassification.from_pretrained("google/vit-base-patch16-224", quantization_config=int8)
model = get_peft_model(backbone, AIMConfig(num_frames=8, num_labels=400))
"""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_example_runs(monkeypatch):
    needs("bitsandbytes")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    example = next((block for block in blocks if "BitsAndBytesConfig" in block), EXAMPLE)
    names = {}
    exec("from peft import get_peft_model\nfrom peft_aim import AIMConfig", names)
    load = lambda name, quantization_config: from_pretrained("hf_vit", quantization_config)
    monkeypatch.setattr(tf.AutoModelForImageClassification, "from_pretrained", load)
    exec(example, names)
    assert zoo.scores(names["model"](torch.randn(1, 8, 3, zoo.SIZE, zoo.SIZE))).shape == (1, 400)
