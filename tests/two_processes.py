"""A few training steps, each process on its part of the batch: run by test_training, also with torchrun."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
import zoo
from accelerate import Accelerator
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from peft_aim import AIMConfig


def train(folder: str) -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = get_peft_model(zoo.build("timm_vit"), AIMConfig(num_frames=zoo.FRAMES, num_labels=3))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    for step in range(3):
        clips, labels = zoo.make_clips(batch=4, seed=step)[mine], torch.tensor([0, 1, 2, 0])[mine]
        accelerator.backward(F.cross_entropy(model(clips), labels))
        optimizer.step()
        optimizer.zero_grad()
    weights = get_peft_model_state_dict(accelerator.unwrap_model(model))
    save_file(weights, f"{folder}/{accelerator.num_processes}-{accelerator.process_index}.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    train(sys.argv[1])
