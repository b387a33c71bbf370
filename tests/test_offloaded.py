"""Backbones whose weights are elsewhere: offloaded by accelerate before or after adapting, sharded, wrapped."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
import zoo
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.utils.modeling import get_state_dict_offloaded_model
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from peft_aim import AIMConfig

CPU = torch.device("cpu")
EVERYTHING = {"temporal_conv": True, "temporal_adapters": 2, "final_norm": True, "num_labels": 3}


def adapt(backbone, **options):
    torch.manual_seed(0)
    return get_peft_model(
        backbone, AIMConfig(num_frames=zoo.FRAMES, init_weights=False, **EVERYTHING, **options)
    ).eval()


def alternately(model, folder):
    """Put every second module with weights of its own on disk."""
    names = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    children = [name for name in names if not any(name.startswith(f"{other}.") for other in names if other)]
    own = [name for name, _ in model.named_parameters(recurse=False)]
    found = [*own, *filter(None, children)]
    deep = [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if not n.startswith(tuple(found))]
    where = {name: ("disk", "cpu")[index % 2] for index, name in enumerate([*found, *deep])}
    return dispatch_model(model, where, main_device="cpu", offload_dir=folder, force_hooks=True)


OFFLOADS = {
    "memory": lambda model, folder: cpu_offload(model, CPU),
    "disk": lambda model, folder: disk_offload(model, folder, CPU),
    "device map": alternately,
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Some parameters are on the meta", "ignore:The following device_map keys")
@pytest.mark.parametrize("how", OFFLOADS)
@pytest.mark.parametrize(("name", "embedding"), [("timm_clip", "input"), ("hf_vit", "blocks")])
def test_offloaded_models_have_the_same_scores(name, embedding, how, tmp_path):
    clips, offload = zoo.make_clips(), OFFLOADS[how]
    expected = zoo.scores(adapt(zoo.build(name), temporal_embedding=embedding)(clips))
    after = offload(adapt(zoo.build(name), temporal_embedding=embedding), tmp_path / "after")
    before = adapt(offload(zoo.build(name), tmp_path / "before"), temporal_embedding=embedding)
    for model in (after, before):
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.allclose(zoo.scores(model(clips)), expected, atol=1e-6)


@torch.no_grad()
def test_adapters_are_saved_from_offloaded_models_and_loaded_onto_them(tmp_path):
    clips, model = zoo.make_clips(), adapt(zoo.build("hf_vit"))
    expected = model(clips).logits
    weights = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    cpu_offload(model, CPU)
    with pytest.raises(ValueError, match=r"(?s)without content \(39 of 39\).*get_state_dict_offloaded_model\(model\)"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    model.save_pretrained(tmp_path, state_dict=get_state_dict_offloaded_model(model))
    for offload in (lambda backbone: backbone, lambda backbone: cpu_offload(backbone, CPU)):
        loaded = PeftModel.from_pretrained(offload(zoo.build("hf_vit")), tmp_path).eval()
        assert torch.allclose(loaded(clips).logits, expected, atol=1e-6)
    found = get_peft_model_state_dict(loaded)
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def with_a_device_map(folder) -> nn.Module:
    """Load a backbone that transformers puts on disk in part."""
    zoo.build("hf_vit").save_pretrained(folder / "backbone")
    where = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "disk", "classifier": "cpu"}
    if not hasattr(zoo.build("hf_vit").vit, "layers"):  # transformers 4
        where = {"vit.embeddings": "cpu", "vit.encoder": "disk", "vit.layernorm": "disk", "classifier": "cpu"}
    options = {"device_map": where, "offload_folder": str(folder / "offload")}
    return tf.ViTForImageClassification.from_pretrained(folder / "backbone", **options).eval()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Some parameters are on the meta", "ignore:The following device_map keys")
def test_device_maps_of_transformers(tmp_path):
    backbone = with_a_device_map(tmp_path)
    assert torch.allclose(
        adapt(backbone)(zoo.make_clips()).logits, adapt(zoo.build("hf_vit"))(zoo.make_clips()).logits, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Some parameters are on the meta", "ignore:The following device_map keys")
def test_adapters_are_loaded_onto_backbones_on_disk(tmp_path):
    clips, model = zoo.make_clips(), adapt(zoo.build("hf_vit"))
    expected = model(clips).logits
    model.save_pretrained(tmp_path / "adapter")
    backbone = with_a_device_map(tmp_path)
    where, on_disk = backbone.hf_device_map, {name for name, tensor in backbone.named_parameters() if tensor.is_meta}
    plain = backbone(clips[:, 0]).logits
    with pytest.raises(ValueError, match="Can't find 'adapter_config.json' at '/nonexistent'"):
        PeftModel.from_pretrained(backbone, "/nonexistent")
    model.peft_config["default"].save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty/ contains no adapter_model.safetensors"):
        PeftModel.from_pretrained(backbone, tmp_path / "empty")
    assert torch.equal(backbone(clips[:, 0]).logits, plain) and backbone.hf_device_map == where
    loaded = PeftModel.from_pretrained(backbone, tmp_path / "adapter").eval()
    loaded.load_adapter(tmp_path / "adapter", "other")
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.allclose(loaded(clips).logits, expected, atol=1e-6)
    assert len([tensor for tensor in loaded.parameters() if tensor.is_meta]) == len(on_disk) > 20
    assert loaded.unload() is backbone and backbone.hf_device_map == where
    new = adapt(backbone)
    new.load_adapter(tmp_path / "adapter", "default")  # as Trainer loads the best
    assert torch.allclose(new.eval()(clips).logits, expected, atol=1e-6) and backbone.hf_device_map == where


def test_backbones_of_other_methods_are_dispatched_again_by_peft(tmp_path):
    adapted = get_peft_model(zoo.build("hf_vit"), LoraConfig(target_modules="all-linear"))
    adapted.save_pretrained(tmp_path)
    backbone = dispatch_model(zoo.build("hf_vit"), {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert backbone._hf_hook.execution_device == "cpu"
    loaded = PeftModel.from_pretrained(backbone, tmp_path)
    assert hasattr(loaded, "_hf_hook")


def test_what_cannot_run_offloaded_says_so():
    backbone = cpu_offload(zoo.build("torchvision_vit"), CPU)  # torch's attention reads weights of its parts
    with pytest.raises(
        ValueError, match=r"could not be run .* accelerate offloads its weights .* preload_module_clas"
    ):
        adapt(backbone)


@pytest.fixture
def process():
    if not distributed.is_available():
        pytest.skip("this torch has no distributed package")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def empty(backbone: nn.Module) -> nn.Module:
    """Imitate what DeepSpeed's zero.Init leaves in each process."""
    for number, parameter in enumerate(backbone.parameters()):
        parameter.ds_id, parameter.data = number, torch.empty(0)
    return backbone


SHARDED = {
    "is wrapped in FullyShardedDataParallel": lambda model: FullyShardedDataParallel(model, device_id=CPU),
    "is wrapped in DistributedDataParallel": nn.parallel.DistributedDataParallel,
    r"has shards as weights \(cls_token is a DTensor\)": lambda model: fully_shard(
        model, mesh=init_device_mesh("cpu", (1,))
    ),
    r"has weights that DeepSpeed has partitioned \(cls_token is empty: zero.Init\)": empty,
}


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:When using ``NO_SHARD``")
@pytest.mark.parametrize("message", SHARDED)
def test_backbones_that_were_sharded_before_are_rejected(message, process):
    sharded = SHARDED[message](zoo.build("timm_vit"))
    modules = [type(module) for module in sharded.modules()]
    with pytest.raises(ValueError, match=f"{message}.* get_peft_model, then accelerator.prepare"):
        adapt(sharded)
    assert [type(module) for module in sharded.modules()] == modules
