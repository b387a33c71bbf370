import torch

from benchmarks.accuracy import reversals
from benchmarks.accuracy.reversals import CLASSES, FRAMES, digits_of, forwards, training_clips, with_reversals
from benchmarks.training.metrics import partner


def test_every_test_clip_comes_with_its_reversal_in_the_partner_class():
    clips = with_reversals("test", 20, seed=0)
    one, other = clips.pixels.split(10)
    assert torch.equal(one.flip(1), other)
    assert torch.equal(partner(clips.labels[:10]), clips.labels[10:])
    assert clips.labels.bincount().tolist() == [2] * len(CLASSES)
    assert torch.equal(partner(partner(clips.labels)), clips.labels)


def test_training_clips_of_odd_classes_are_reversed_clips_of_their_partners():
    clips, even = training_clips(20, seed=0), forwards(digits_of("train"), torch.arange(20) % 10 // 2, seed=0)
    turned = clips.labels % 2 == 1
    assert clips.labels.tolist() == [*range(10)] * 2
    assert torch.equal(clips.pixels[turned], even.reversed().pixels[turned])
    assert torch.equal(clips.pixels[~turned], even.pixels[~turned])


def test_splits_share_no_digit():
    splits = [
        {tuple(image.flatten().tolist()) for image in digits_of(s).images} for s in ("train", "validation", "test")
    ]
    assert not splits[0] & splits[1]
    assert not splits[2] & (splits[0] | splits[1])


def test_a_seed_reproduces_clips_and_leaves_the_global_generator_unchanged():
    state = torch.get_rng_state()
    clips, again, other = (training_clips(10, seed).pixels for seed in (3, 3, 4))
    assert torch.equal(clips, again)
    assert not torch.equal(clips, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_shape_and_range_of_clips():
    clips = training_clips(10, seed=0)
    assert clips.pixels.shape == (10, FRAMES, 1, 32, 32)
    assert clips.pixels.abs().max() < 2  # noise may go beyond black and white
    assert len(clips.first(4)) == 4


def test_only_the_property_of_the_class_runs(monkeypatch):
    monkeypatch.setattr(reversals, "TREMBLE", 0.0)
    for index, name in enumerate(reversals.PROPERTIES[:-1]):
        steps = reversals.courses(torch.full((50,), index))
        assert (steps[name].diff() > 0).all()
        for other in set(reversals.PROPERTIES) - {name}:
            assert (steps[other].diff() > 0).any() and (steps[other].diff() < 0).any()
    ink = reversals.courses(torch.full((50,), 4))["ink"].diff()
    assert (ink[ink > 0] < 0.3).all() and (ink[ink < 0] < -0.5).all()  # rises slowly, drops at once
