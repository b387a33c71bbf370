"""The names of classes and their indices."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_aim.video.data.listing import Sample, by_index, class_names, indexed, read_names

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_wrong_labels_are_rejected():
    videos = [Sample(Path("a.mp4"), "run"), Sample(Path("b.mp4"), "fly")]
    with pytest.raises(
        ValueError, match=r"b.mp4 has the label 'fly', which is not one of the classes \['run', 'walk'\]"
    ):
        indexed(videos, ["run", "walk"])
    with pytest.raises(ValueError, match="There is only one class, 'run'. Give videos of at least two"):
        class_names(videos[:1])


def test_names_are_the_same_however_they_are_composed(tmp_path):
    videos = [Sample(Path("a.mp4"), COMPOSED), Sample(Path("b.mp4"), "run"), Sample(Path("c.mp4"), DECOMPOSED)]
    assert class_names(videos) == [COMPOSED, "run"]
    assert [video.label for video in indexed(videos, [DECOMPOSED, "run"])] == [0, 1, 0]
    assert not by_index(videos, [DECOMPOSED, "run"])
    (tmp_path / "names.txt").write_text(f"{DECOMPOSED}\nrun\n")
    assert read_names(tmp_path / "names.txt") == [COMPOSED, "run"]


@pytest.mark.parametrize("classes", [["1", "2"], ["run", "2"]])
def test_numbers_are_no_indices_if_a_class_is_a_number_itself(classes):
    videos = [Sample(Path("a.mp4"), "0"), Sample(Path("b.mp4"), "2")]
    assert not by_index(videos, classes)
    with pytest.raises(ValueError, match="a.mp4 has the label '0', which is not one of the classes"):
        indexed(videos, classes)


def test_numbers_beside_names_are_no_indices():
    with pytest.raises(ValueError, match="b.mp4 has the label '1', which is not one of the classes"):
        indexed([Sample(Path("a.mp4"), "run"), Sample(Path("b.mp4"), "1")], ["run", "walk"])
