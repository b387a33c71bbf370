"""What PEFT does around a tuner: failing to load or save, loading the best weights, pushing, and mixed batches.

PEFT has no place for a tuner to take part in these, so its functions are extended when this package is imported. For
models without AIM adapters they are PEFT's own, but for two messages: until the config of an adapter has been read,
its method is unknown, so why it could not be downloaded or read is said for all methods.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel

from peft_aim.card import write_card
from peft_aim.config import AIMConfig, NotDownloaded, SavedAdapter, broken
from peft_aim.files import written_together
from peft_aim.layers import EMBEDDING, with_adapter_names
from peft_aim.peft_type import add_peft_type
from peft_aim.saving.offloaded import keeping_offload

in_from_pretrained: ContextVar[bool] = ContextVar("in_from_pretrained", default=False)


def extend_peft_model() -> None:
    """Extend PEFT; a second call changes nothing."""
    extend(PeftModel, "forward", with_adapter_names)
    extend(PeftModel, "from_pretrained", _with_new_adapter)
    extend(PeftModel, "load_adapter", _leaving_nothing_behind)
    extend(PeftModel, "save_pretrained", _all_or_nothing)
    extend(PeftModel, "_upload_modified_files", _with_card)
    extend(PeftConfig, "_get_peft_type", _with_reason)
    extend(PeftConfig, "from_json_file", _naming_broken_files)
    with suppress(ImportError):  # transformers 4 loads through PEFT
        conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
        extend(conversion, "build_peft_weight_mapping", _with_names)


def extend(owner: Any, name: str, extension: Callable[[Callable], Callable]) -> None:
    """Replace a function by an extended one, unless it has been: also if others have extended that in turn.

    Args:
        owner: Its class or module.
        name: Its name there.
        extension: Returns the extended function.
    """
    found = inspect.getattr_static(owner, name)
    function = getattr(found, "__func__", found)
    if not hasattr(function, "extended_by_aim"):  # functools.wraps copies it to the wrappers of others
        extended = extension(function)
        extended.extended_by_aim = True
        setattr(owner, name, classmethod(extended) if isinstance(found, classmethod) else extended)


def _with_new_adapter(from_pretrained: Callable) -> Callable:
    @wraps(from_pretrained)
    def load(*args: Any, **kwargs: Any) -> Any:
        before = in_from_pretrained.set(True)
        try:
            with _keeping_offload_for_aim(inspect.signature(from_pretrained).bind(*args, **kwargs)):
                return from_pretrained(*args, **kwargs)
        finally:
            in_from_pretrained.reset(before)

    return load


def _keeping_offload_for_aim(call: inspect.BoundArguments) -> AbstractContextManager[None]:
    given = call.arguments
    if not hasattr(given.get("model"), "hf_device_map"):
        return nullcontext()
    if given.get("config") is not None:
        is_ours = isinstance(given["config"], AIMConfig)
    else:
        saved = _saved(given["model_id"], given.get("kwargs", {}))
        is_ours = PeftConfig._get_peft_type(saved.name, subfolder=saved.subfolder, **saved.options) == add_peft_type()
    return keeping_offload(given["model"]) if is_ours else nullcontext()


def _leaving_nothing_behind(load_adapter: Callable) -> Callable:
    @wraps(load_adapter)
    def load(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        _extend_trainer()
        is_new = in_from_pretrained.get() or adapter_name not in self.peft_config
        handled = sys.exc_info()[1]
        is_ours = any(isinstance(config, AIMConfig) for config in self.peft_config.values())
        try:
            with keeping_offload(self.get_base_model()) if is_ours else nullcontext():
                return load_adapter(self, model_id, adapter_name, *args, **kwargs)
        except BaseException as error:
            if is_new and isinstance(self.peft_config.get(adapter_name), AIMConfig):
                self.base_model._remove_adapter(adapter_name)
            why = _saved(model_id, kwargs).why(error, handled=handled) if is_ours else None
            if why is None or not isinstance(error, Exception):  # an interrupt stays one
                raise
            raise ValueError(why) from error

    return load


def _with_reason(get_peft_type: Callable) -> Callable:
    """Say why the config of an adapter could not be downloaded, after PEFT's sentence that it could not."""

    @wraps(get_peft_type)
    def get(cls: type[PeftConfig], model_id: Any, **kwargs: Any) -> str:
        handled = sys.exc_info()[1]
        try:
            return get_peft_type(cls, model_id, **kwargs)
        except ValueError as error:
            why = _saved(model_id, kwargs).why(error, handled=handled)
            if why is None:
                raise
            raise NotDownloaded(f"{str(error).removesuffix('.')}. {why}") from error

    return get


def _naming_broken_files(from_json_file: Callable) -> Callable:
    @wraps(from_json_file)
    def read(cls: type[PeftConfig], path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        try:
            found = from_json_file(cls, path_json_file, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(broken(path_json_file, error)) from error
        if not isinstance(found, dict):
            raise ValueError(broken(path_json_file, f"it contains a {type(found).__name__}, not options by name"))
        return found

    return read


def _saved(model_id: Any, kwargs: dict[str, Any]) -> SavedAdapter:
    options = {name: value for name, value in PeftModel._split_kwargs(kwargs)[0].items() if value is not None}
    return SavedAdapter(str(model_id), options.pop("subfolder", None), options)


def _all_or_nothing(save_pretrained: Callable) -> Callable:
    """Write adapters completely or not at all: PEFT writes a model card before a tuner can reject the weights."""

    @wraps(save_pretrained)
    def save(self: PeftModel, save_directory: str, *args: Any, **kwargs: Any) -> Any:
        _extend_trainer()
        given = inspect.signature(save_pretrained).bind(self, save_directory, *args, **kwargs).arguments
        is_ours = any(isinstance(config, AIMConfig) for config in self.peft_config.values())
        if not is_ours or not given.get("is_main_process", True) or os.path.isfile(save_directory):
            return save_pretrained(self, save_directory, *args, **kwargs)
        cards = ["README.md", *(f"{name}/README.md" for name in self.peft_config)]
        with written_together(Path(save_directory), cards) as folder:
            return save_pretrained(self, str(folder), *args, **kwargs)

    return save


def _extend_trainer() -> None:
    """Extend Trainer when one saves or resumes; to import it would take longer than this package."""
    module = sys.modules.get("transformers.trainer")
    if module is not None:
        extend(module.Trainer, "_load_best_model", _from_own_folder)


def _from_own_folder(load_best_model: Callable) -> Callable:
    """Load the best weights of an adapter from its own folder, where PEFT saves all but the one named "default"."""

    @wraps(load_best_model)
    def load(self: Any) -> Any:
        name = [*self.model.active_adapters, "default"][0] if isinstance(self.model, PeftModel) else "default"
        is_ours = name != "default" and isinstance(self.model.peft_config[name], AIMConfig)
        if not is_ours or self.is_deepspeed_enabled or self.is_fsdp_enabled:  # with states of their own
            return load_best_model(self)
        best = self.state.best_model_checkpoint
        self.state.best_model_checkpoint = os.path.join(best, name)
        try:
            return load_best_model(self)
        finally:
            self.state.best_model_checkpoint = best

    return load


def _with_card(upload: Callable) -> Callable:
    """Write the cards again, with the name of the repository: transformers has put an empty one over them."""

    @wraps(upload)
    def upload_with_card(self: PeftModel, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        configs = {name: config for name, config in self.peft_config.items() if isinstance(config, AIMConfig)}
        for name, config in reversed(configs.items()):  # the first has the repository's card, unless one is "default"
            inside = None if name == "default" else name
            write_card(config.to_dict(), Path(working_dir, inside or ""), repo_id, inside)
            if "default" not in configs:
                write_card(config.to_dict(), Path(working_dir), repo_id, inside)
        return upload(self, working_dir, repo_id, *args, **kwargs)

    return upload_with_card


def _with_names(renamings: Callable) -> Callable:
    """Have transformers' own ``load_adapter`` rename weights of AIM, as PEFT's loaders do.

    It asks neither the tuner nor its layers for the names of weights, but this function of PEFT's, in which only a
    prefix can be registered.
    """

    @wraps(renamings)
    def with_names(*args: Any, **kwargs: Any) -> Any:
        found = renamings(*args, **kwargs)
        config = inspect.signature(renamings).bind(*args, **kwargs).arguments.get("peft_config")
        if not found or not isinstance(config, AIMConfig):
            return found
        renaming = importlib.import_module(renamings.__module__).WeightRenaming
        return [*found, renaming(rf"({EMBEDDING}\.[^.]+)$", r"\1.weight")]

    return with_names
