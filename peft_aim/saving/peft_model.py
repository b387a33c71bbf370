"""What PeftModel does with adapters after asking the tuner: if loading one fails, and when one is pushed to the Hub.

PEFT has no place for a tuner to take part in either, so the two methods are extended when this package is imported.
For models without AIM adapters they are PEFT's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.utils import PushToHubMixin

from peft_aim.card import write_card
from peft_aim.config import AIMConfig, SavedAdapter


def extend_peft_model() -> None:
    """Extend PeftModel; a second call changes nothing."""
    of_peft = getattr(PeftModel.load_adapter, "of_peft", PeftModel.load_adapter)
    PeftModel.load_adapter = _leaving_nothing_behind(of_peft)
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

    load.of_peft = load_adapter
    return load


def _why(model: PeftModel, error: BaseException, model_id: Any, kwargs: dict[str, Any]) -> str | None:
    """Return the reason of a failed download, which PEFT reports as a missing adapter_config.json."""
    if not any(isinstance(config, AIMConfig) for config in model.peft_config.values()):
        return None
    options = dict(PeftModel._split_kwargs(kwargs)[0])
    return SavedAdapter(str(model_id), options.pop("subfolder", None), options).why(error)


def _upload_with_card(self: PeftModel, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
    """Write the cards again, with the name of the repository: transformers has put an empty one over them."""
    configs = {name: config for name, config in self.peft_config.items() if isinstance(config, AIMConfig)}
    for name, config in reversed(configs.items()):  # the first has the card of the repository, unless one is "default"
        inside = None if name == "default" else name
        write_card(config.to_dict(), Path(working_dir, inside or ""), repo_id, inside)
        if "default" not in configs:
            write_card(config.to_dict(), Path(working_dir), repo_id, inside)
    return PushToHubMixin._upload_modified_files(self, working_dir, repo_id, *args, **kwargs)
