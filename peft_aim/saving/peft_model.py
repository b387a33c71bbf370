"""What PeftModel does around a tuner: when loading an adapter fails, Trainer saves one, or one is pushed.

PEFT has no place for a tuner to take part in these, so the methods are extended when this package is imported. For
models without AIM adapters they are PEFT's own.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import PushToHubMixin

from peft_aim.card import write_card
from peft_aim.config import AIMConfig, SavedAdapter


def extend_peft_model() -> None:
    """Extend PeftModel; a second call changes nothing."""
    for name, extend in (("load_adapter", _leaving_nothing_behind), ("save_pretrained", _warning_of_trainer)):
        method = getattr(PeftModel, name)
        of_peft = getattr(method, "of_peft", method)
        extended = extend(of_peft)
        extended.of_peft = of_peft
        setattr(PeftModel, name, extended)
    PeftModel._upload_modified_files = _upload_with_card


def _leaving_nothing_behind(load_adapter: Callable) -> Callable:
    @wraps(load_adapter)
    def load(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load_adapter(self, model_id, adapter_name, *args, **kwargs)
        except BaseException as error:
            config = self.peft_config.get(adapter_name)
            if isinstance(config, AIMConfig) and config.awaits_weights:  # it was added only to be loaded
                self.base_model._remove_adapter(adapter_name)
            why = _why(self, error, model_id, kwargs)
            if why is None:
                raise
            raise ValueError(why) from error

    return load


def _why(model: PeftModel, error: BaseException, model_id: Any, kwargs: dict[str, Any]) -> str | None:
    """Return the reason of a failed download, which PEFT reports as a missing adapter_config.json."""
    if not any(isinstance(config, AIMConfig) for config in model.peft_config.values()):
        return None
    options = dict(PeftModel._split_kwargs(kwargs)[0])
    return SavedAdapter(str(model_id), options.pop("subfolder", None), options).why(error)


def _warning_of_trainer(save_pretrained: Callable) -> Callable:
    @wraps(save_pretrained)
    def save(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> Any:
        result = save_pretrained(self, save_directory, *args, **kwargs)
        folder, (name, *_) = os.path.abspath(save_directory), (*self.active_adapters, "default")
        is_checkpoint = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", os.path.basename(folder))
        if is_checkpoint and name != "default" and isinstance(self.peft_config[name], AIMConfig):
            warnings.warn(
                f"transformers' Trainer cannot load the best checkpoint of the adapter {name!r}: PEFT saves it in "
                f"{os.path.join(folder, name)}, and load_best_model_at_end looks in the folder above, for one named "
                "'default'. Name the adapter 'default', or after training call model.load_adapter(f'{checkpoint}/"
                f"{name}', {name!r}) with checkpoint = trainer.state.best_model_checkpoint.",
                stacklevel=2,
            )
        return result

    return save


def _upload_with_card(self: PeftModel, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
    """Write the cards again, with the name of the repository: transformers has put an empty one over them."""
    configs = {name: config for name, config in self.peft_config.items() if isinstance(config, AIMConfig)}
    for name, config in reversed(configs.items()):  # the first has the card of the repository, unless one is "default"
        inside = None if name == "default" else name
        write_card(config.to_dict(), Path(working_dir, inside or ""), repo_id, inside)
        if "default" not in configs:
            write_card(config.to_dict(), Path(working_dir), repo_id, inside)
    return PushToHubMixin._upload_modified_files(self, working_dir, repo_id, *args, **kwargs)
