"""The files of a saved adapter: in a folder, or on the Hub, where a failure is reported as what it is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

LOG_IN = "log in with `hf auth login`, or pass token="


class NotDownloaded(ValueError):  # noqa: N818 (users see the name, and it tells what happened)
    """Raised if a file of an adapter cannot be downloaded, with the reason and what to do."""


@dataclass(frozen=True)
class SavedAdapter:
    """A saved adapter.

    Attributes:
        name: Its folder or Hub id.
        subfolder: Folder inside of it.
        options: Arguments of ``hf_hub_download``: revision, token, cache_dir, ...
    """

    name: str
    subfolder: str | None = None
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # a token is among them

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return os.path.isdir(self.name)

    def folder_with_config(self) -> str:
        """Return the folder of its config on this machine, after downloading the config if it is on the Hub.

        Raises:
            ValueError: If there is none.
        """
        folder = os.path.join(self.name, self.subfolder or "")
        if not self.is_local:
            return os.path.dirname(self._download(CONFIG_NAME))
        if not os.path.isfile(os.path.join(folder, CONFIG_NAME)):
            inside = sorted(path.parent.name for path in Path(self.name).glob(f"*/{CONFIG_NAME}"))
            raise ValueError(f"{folder} contains no {CONFIG_NAME}, so it is no saved adapter. {_among(inside)}")
        return folder

    def folder_with_weights(self) -> str:
        """Return the folder of its weights on this machine, after downloading them if they are on the Hub.

        Raises:
            NotDownloaded: If they cannot be downloaded.
        """
        if self.is_local:
            return os.path.join(self.name, self.subfolder or "")
        try:
            return os.path.dirname(self._download(SAFETENSORS_WEIGHTS_NAME))
        except NotDownloaded as error:
            offline = constants.HF_HUB_OFFLINE and isinstance(error.__cause__, LocalEntryNotFoundError)
            if not offline and not _is_missing(error.__cause__):
                raise
            try:
                return os.path.dirname(self._download(WEIGHTS_NAME))
            except NotDownloaded:
                raise error from error.__cause__

    def _download(self, file: str) -> str:
        try:
            return hf_hub_download(self.name, file, subfolder=self.subfolder, **self.options)
        except Exception as error:
            if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
                raise  # of this machine: its disk is full, for example
            what = self.why(error, file) or (
                f"The download of {file} of {self.name} from the Hub broke off ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no message'}), so nothing was loaded. Try again."
            )
            raise NotDownloaded(what) from error

    def why(self, error: BaseException, file: str = CONFIG_NAME, handled: BaseException | None = None) -> str | None:
        """Return why a file could not be downloaded, and what to do.

        Args:
            error: What was raised.
            file: Which file was asked for.
            handled: The exception that the caller was handling before the download, which is not its reason.

        Returns:
            The reason; None if the Hub is not the reason, or if the error already gives it.
        """
        found = _of_hub(error, handled)
        if found is None or self.is_local:
            return None
        status = getattr(getattr(found, "response", None), "status_code", None)
        revision = self.options.get("revision") or "main"
        path = f"{self.subfolder}/{file}" if self.subfolder else file
        if isinstance(found, HFValidationError):
            return f"{self.name} is neither a folder nor a Hub id, OWNER/NAME. Give one of them."
        if isinstance(found, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return self._unreachable(found, path)
        if isinstance(found, GatedRepoError):
            return (
                f"{self.name} on the Hub is gated, and you have no access to it ({status}). Ask for access on its "
                f"page, and {LOG_IN}."
            )
        if isinstance(found, RepositoryNotFoundError):
            return (
                f"There is no folder {self.name}, and on the Hub no repository of this name, or a private one that "
                f"you have no right to read ({status}). Check the name; if it is private, {LOG_IN}."
            )
        if isinstance(found, RevisionNotFoundError):
            return f"{self.name} on the Hub has no revision {revision!r}. {self._revisions()}"
        if isinstance(found, EntryNotFoundError):
            advice = self._subfolders(revision) if file == CONFIG_NAME else "It is incomplete: upload it again."
            return f"{self.name} on the Hub has no file {path} in revision {revision!r}. {advice}"
        if status in (401, 403):
            return f"The Hub does not let you read {self.name} ({status}). Check your token: {LOG_IN}."
        return f"The Hub failed to send {path} of {self.name} ({status}), so nothing was loaded. Try again later."

    def _unreachable(self, error: BaseException, path: str) -> str:
        where = self.options.get("cache_dir") or constants.HF_HUB_CACHE
        if constants.HF_HUB_OFFLINE or self.options.get("local_files_only"):
            return (
                f"{path} of {self.name} is not in the cache {where}, and downloads are off (HF_HUB_OFFLINE or "
                "local_files_only). Load it once with downloads on, or give a folder."
            )
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        reason = f"it answers with status {status}" if status else f"{type(cause).__name__}: {cause}"
        return (
            f"The Hub cannot be reached for {path} of {self.name} ({reason}), and the cache {where} has no copy. "
            f"Check the connection and try again, or the name: there is no folder {self.name} here."
        )

    def _revisions(self) -> str:
        try:
            refs = self._api().list_repo_refs(self.name)
        except Exception:  # it was only for the message
            return "Pass another revision."
        return f"Pass one of {', '.join(ref.name for ref in [*refs.branches, *refs.tags])}, or a commit, as revision."

    def _subfolders(self, revision: str) -> str:
        try:
            info = self._api().model_info(self.name, revision=revision, timeout=5)  # one attempt, as of the revisions
            files = [file.rfilename for file in info.siblings or []]
        except Exception:
            files = []
        return _among(sorted(os.path.dirname(file) for file in files if os.path.basename(file) == CONFIG_NAME))

    def _api(self) -> HfApi:
        return HfApi(endpoint=self.options.get("endpoint"), token=self.options.get("token"))


def broken(path: str, why: object) -> str:
    """Return the message about a file of an adapter that cannot be read, with what to do.

    Args:
        path: The file; a link in the cache of the Hub, which would give the same file again.
        why: What is wrong with it.

    Example:
        >>> broken("my-task/adapter_config.json", "it is empty")
        'my-task/adapter_config.json is broken (it is empty), so nothing was loaded. Get the file again.'
    """
    again = f"Delete {os.path.realpath(path)}, and load it again." if os.path.islink(path) else "Get the file again."
    return f"{path} is broken ({why}), so nothing was loaded. {again}"


KINDS = (EntryNotFoundError, OfflineModeIsEnabled, HFValidationError)


def _of_hub(error: BaseException | None, handled: BaseException | None) -> BaseException | None:
    """Return the Hub's error from which another one follows.

    PEFT raises plain ValueErrors without a cause while it handles that of the Hub. Any other error that is raised
    meanwhile has a reason of its own.
    """
    while error is not None and error is not handled and not isinstance(error, NotDownloaded):
        if isinstance(error, (HfHubHTTPError, *KINDS)):
            return error
        in_passing = type(error) is ValueError and not error.__suppress_context__
        error = error.__cause__ or (error.__context__ if in_passing else None)
    return None


def _is_missing(error: BaseException | None) -> bool:
    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def _among(folders: list[str]) -> str:
    if not any(folders):
        return "Give the folder or Hub id of a saved adapter, and the subfolder that it is in."
    return f"Adapters are in {', '.join(name or 'the folder itself' for name in folders)}: pass one as subfolder."
