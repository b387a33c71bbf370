"""The image classifiers of vit-pytorch, which are written by hand, with blocks laid out in many ways.

Every module of the package with a class that takes (B, 3, H, W) and returns class scores; what is left out is listed,
with the reason, in ``models/home_made_left_out.txt``.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

PACKAGE = "vit_pytorch"
SIZE = 64  # pixels
COMMON = {
    "image_size": SIZE,
    "patch_size": 16,
    "num_classes": 5,
    "dim": 64,
    "depth": 2,
    "heads": 2,
    "dim_head": 32,
    "mlp_dim": 128,
}
STAGES = {"num_classes": 5, "dim": 32, "depth": (1, 1, 1, 1), "dropout": 0.0}
# The class in each module, and options that differ from the common ones.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ats_vit": ("ViT", {"max_tokens_per_depth": (16, 8)}),
    "attn_residual_with_dca_simple_vit": ("SimpleViT", {}),
    "cait": ("CaiT", {"cls_depth": 1}),
    "cct": (
        "CCT",
        {"img_size": SIZE, "embedding_dim": 64, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5},
    ),
    "cross_vit": (
        "CrossViT",
        {
            **{"sm_dim": 32, "lg_dim": 64, "sm_patch_size": 8, "sm_enc_heads": 2, "sm_enc_mlp_dim": 64, "depth": 1},
            **{"sm_enc_dim_head": 16, "lg_enc_heads": 2, "lg_enc_depth": 2, "lg_enc_mlp_dim": 128},
            **{"lg_enc_dim_head": 32, "cross_attn_heads": 2, "cross_attn_depth": 1, "cross_attn_dim_head": 32},
            **{"dropout": 0.0, "emb_dropout": 0.0},
        },
    ),
    "crossformer": (
        "CrossFormer",
        {"dim": (32, 64, 64, 128), "depth": (1, 1, 1, 1), "local_window_size": 2, "global_window_size": (4, 2, 2, 1)},
    ),
    "cvt": (
        "CvT",
        {
            **{"s1_emb_dim": 32, "s2_emb_dim": 64, "s2_heads": 2, "s2_depth": 1},
            **{"s3_emb_dim": 96, "s3_heads": 2, "s3_depth": 2},
        },
    ),
    "deepvit": ("DeepViT", {}),
    "jet_vit": ("JetViT", {"depth": 4}),
    "jumbo_vit": ("JumboViT", {}),
    "learnable_memory_vit": ("ViT", {}),
    "levit": ("LeViT", {"dim": (64, 64, 96), "depth": 1, "heads": (2, 2, 2), "mlp_mult": 2, "image_size": 128}),
    "looped_vit": ("LoopedViT", {"pre_loop_depth": 1, "num_looped_blocks": 1, "post_loop_depth": 1, "loop_depth": 2}),
    "max_vit": ("MaxViT", {**STAGES, "window_size": 2, "dim_head": 32}),
    "max_vit_with_registers": ("MaxViT", {**STAGES, "window_size": 2, "dim_head": 32}),
    "mobile_vit": (
        "MobileViT",
        {
            **{"image_size": (SIZE, SIZE), "dims": [32, 48, 64], "depths": (1, 1, 1), "patch_size": (2, 2)},
            "channels": [16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96],
        },
    ),
    "mp3": ("ViT", {}),
    "nest": ("NesT", {"patch_size": 4, "num_hierarchies": 2, "block_repeats": (1, 2), "dim": 32}),
    "normalized_vit": ("nViT", {}),
    "parallel_vit": ("ViT", {}),
    "pit": ("PiT", {"depth": (1, 2)}),
    "regionvit": ("RegionViT", {"dim": (32, 64, 64, 128), "depth": (1, 1, 1, 1), "window_size": 2}),
    "rvt": ("RvT", {}),
    "scalable_vit": (
        "ScalableViT",
        {
            **STAGES,
            "dim": 32,
            "heads": (2, 2, 2, 2),
            "reduction_factor": (4, 2, 1, 1),
            "window_size": (4, 2, None, None),
        },
    ),
    "sep_vit": ("SepViT", {**STAGES, "heads": (1, 1, 2, 2), "image_size": 224}),
    "simple_flash_attn_vit": ("SimpleViT", {}),
    "simple_uvit": ("SimpleUViT", {"depth": 4}),
    "simple_vit": ("SimpleViT", {}),
    "simple_vit_attn_residual": ("SimpleViTAttnResidual", {}),
    "simple_vit_orthog_residual_update": ("SimpleViT", {}),
    "simple_vit_with_fft": ("SimpleViT", {"freq_patch_size": 16}),
    "simple_vit_with_hyper_connections": ("SimpleViT", {"num_residual_streams": 2}),
    "simple_vit_with_patch_dropout": ("SimpleViT", {"patch_dropout": 0.0}),
    "simple_vit_with_qk_norm": ("SimpleViT", {}),
    "simple_vit_with_register_tokens": ("SimpleViT", {}),
    "simple_vit_with_relative_proj_pos_bias": ("SimpleViT", {}),
    "simple_vit_with_sparse_gating": ("SimpleViTWithSparseGating", {}),
    "simple_vit_with_specialized_cls": ("SimpleViT", {}),
    "simple_vit_with_value_residual": ("SimpleViT", {}),
    "t2t": ("T2TViT", {"t2t_layers": ((7, 4), (3, 2), (3, 2))}),
    "twins_svt": (
        "TwinsSVT",
        {
            f"s{stage}_{option}": value
            for stage, width in enumerate((16, 32, 32, 64), 1)
            for option, value in {"emb_dim": width, "local_patch_size": 2, "global_k": 2, "depth": 1}.items()
        },
    ),
    "vat": ("ViT", {}),
    "vit": ("ViT", {}),
    "vit_5": ("ViT", {}),
    "vit_detpool": ("ViTDetPool", {}),
    "vit_for_small_dataset": ("ViT", {}),
    "vit_with_decorr": ("ViT", {}),
    "vit_with_keel_post_ln": ("ViT", {}),
    "vit_with_patch_dropout": ("ViT", {"patch_dropout": 0.0}),
    "vit_with_patch_merger": ("ViT", {"patch_merge_layer": 1}),
    "xcit": ("XCiT", {"cls_depth": 1}),
    "wwt": ("WWT", {"num_slots": 4}),
}


def build(name: str) -> nn.Module:
    """Build a small image classifier.

    Args:
        name: Its module in the package.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        importlib.import_module(PACKAGE)
    except ImportError as error:
        raise ImportError("The row 'home_made' needs vit-pytorch: pip install vit-pytorch") from error
    class_name, options = MODELS[name]
    model_class = getattr(importlib.import_module(f"{PACKAGE}.{name}"), class_name)
    taken = inspect.signature(model_class).parameters
    taken = {*taken, *options} if "kwargs" in taken else taken
    options = {**COMMON, **options}
    model = model_class(**{option: value for option, value in options.items() if option in taken})
    size = options["image_size"]
    model.image_size = tuple(size) if isinstance(size, tuple) else (size, size)
    return model
