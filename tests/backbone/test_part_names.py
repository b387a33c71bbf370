"""Names of parts that a config gives have to be those of the blocks, and of the adapters that are there."""

from __future__ import annotations

import pytest
import zoo

from peft_aim.backbone import PartNames, inspect_backbone
from peft_aim.targets import check_part_names


def test_names_of_parts_that_the_blocks_do_not_have_are_rejected():
    found = inspect_backbone(zoo.build("timm_vit"))
    check_part_names(found, PartNames(norm1="norm1"), is_first=True)
    for is_first, message in (
        (True, r"norm1_module='ln' is not what the blocks have there: norm1\. Leave norm1_module out\."),
        (False, r"norm1_module='ln' is not the module that the existing adapters use, norm1\. All adapters"),
    ):
        with pytest.raises(ValueError, match=message):
            check_part_names(found, PartNames(norm1="ln"), is_first)
