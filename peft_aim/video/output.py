"""Output folders: checked before the work begins, so that no results are lost for lack of a place to write them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from peft_aim.files import NO_ROOM
from peft_aim.video.processes import processes


def check_output(output: Path, overwrite: bool | None = None, can_resume: bool = False) -> None:
    """Check that files can be written to a folder, and overwrite nothing.

    Args:
        output: The folder.
        overwrite: Whether it may contain files; None if that is not an option.
        can_resume: Whether it has a training run to resume, which the error message then suggests.

    Raises:
        ValueError: If it cannot be written to, or is not empty and must not be overwritten.
    """
    check_writable(output)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        hints = [", or write to it with --overwrite"] if overwrite is False else []
        hints += [", or resume the training run in it with --resume"] if can_resume else []
        raise ValueError(f"The output {output} is not empty. Give another folder{''.join(hints)}.")


def check_writable(output: Path) -> None:
    """Check that files can be written to a folder, which may not exist yet, by writing one; it leaves nothing behind.

    Only the main process checks, since only it writes.

    Raises:
        ValueError: If a file is in the way, or the folder cannot be created or written to.

    Example:
        >>> check_writable(Path(__file__))
        Traceback (most recent call last):
        ValueError: The output .../output.py is a file. Give a folder.
    """
    if not processes().is_main_process:
        return
    try:
        for path in (output, *output.parents):
            if path.exists() and not path.is_dir():
                wrong = "is a file" if path == output else f"cannot be created, since {path} is a file"
                raise ValueError(f"The output {output} {wrong}. Give {'a' if path == output else 'another'} folder.")
        created = missing(output)
        try:
            output.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=output) as file:
                file.write(bytes(4096))
        finally:
            remove_empty(created)
    except OSError as error:
        raise ValueError(
            f"The output {output} cannot be written to: {error.strerror}. Give another folder, or make room and allow "
            "writing there."
        ) from error


def missing(folder: Path) -> list[Path]:
    """Return which folders have to be created for a folder, from the inside out.

    Example:
        >>> missing(Path("no/such"))
        [PosixPath('no/such'), PosixPath('no')]
    """
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove folders as far as they exist and are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def is_full(error: Exception) -> bool:
    """Return whether an error is a full or read-only disk, by whichever library a file was written.

    Example:
        >>> is_full(OSError(NO_ROOM[0], "No space left on device")), is_full(OSError("No such file"))
        (True, False)
    """
    by_torch = isinstance(error, RuntimeError) and any(w in str(error) for w in ("inline_container", "iostream error"))
    by_system = isinstance(error, OSError) and error.errno in NO_ROOM
    return by_system or by_torch or (isinstance(error, SafetensorError) and "I/O error" in str(error))


def raise_if_full(error: Exception, output: str | Path, then: str) -> None:
    """Raise a full or read-only disk as an error that names the output.

    Args:
        error: What went wrong; nothing is raised for anything else.
        output: The output folder.
        then: What to do once there is room.

    Raises:
        OSError: If the disk is full or read-only.
    """
    if is_full(error):
        raise OSError(
            f"{output} cannot be written to: its disk is full or read-only ({error}). Make room, and {then}."
        ) from error


@contextmanager
def printed_if_lost(results: object, output: str | Path = "The output") -> Iterator[None]:
    """Print results that cannot be written: whatever goes wrong inside, they are not lost.

    Args:
        results: The results. They become text, by ``str``, only if something goes wrong, so they may still grow
            inside; nothing is printed if the text is empty.
        output: What is being written, for an error that doesn't name the file.

    Raises:
        OSError: If a file cannot be written; the message names it, and says that the results are printed.
    """
    try:
        yield
    except BaseException as error:
        text = str(results)
        if text:
            print(f"\n{text}\n", flush=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            f"{error.filename or output} cannot be written: {error.strerror or error}. "
            f"{'The results stand above. ' if text else ''}Make room, or allow writing there, before you run this "
            "again."
        ) from error
