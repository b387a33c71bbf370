"""Files that are written as a whole or not at all, one or several together."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a full or read-only disk


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file as a whole or not at all: to a temporary file beside it, which then takes its name.

    Args:
        path: The file; an earlier one is replaced.
        content: What to write, or a function that writes it to the path it is given, of the same suffix. Characters
            that UTF-8 cannot encode, such as undecodable parts of file names, are written as escapes.

    Raises:
        OSError: If the file cannot be written, on a full disk for example; an earlier one is then left as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "report.json")
        ...     write_atomically(path, "{}")
        ...     path.read_text(), len([*path.parent.iterdir()])
        ('{}', 1)
    """
    beside = path.with_name(f".{uuid4().hex[:8]}{path.suffix}")
    try:
        if callable(content):
            content(beside)
        else:
            beside.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
        beside.replace(path)
    except OSError as error:  # names the file that is wanted, not the temporary one
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def written_together(folder: Path, read: Iterable[str] = ()) -> Iterator[Path]:
    """Write files into a folder together or not at all: to a temporary one of the same name, then they are moved.

    Args:
        folder: The folder; it is created with its parents, which are removed again if nothing was written.
        read: Files of the folder, if they are there, that are read to write the others.

    Yields:
        The temporary folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with written_together(Path(parent, "my-task")) as folder:
        ...         _ = Path(folder, "report.json").write_text("{}")
        ...     folder.name, [path.name for path in Path(parent, "my-task").iterdir()]
        ('my-task', ['report.json'])
    """
    folder = folder.resolve()
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".", dir=folder) as beside:
            temporary = Path(beside, folder.name)
            temporary.mkdir(exist_ok=True)
            for name in read:
                if (folder / name).is_file():
                    (temporary / name).parent.mkdir(exist_ok=True)
                    shutil.copy2(folder / name, temporary / name)
            yield temporary
            for path in [path for path in temporary.rglob("*") if path.is_file()]:
                wanted = folder / path.relative_to(temporary)
                wanted.parent.mkdir(parents=True, exist_ok=True)
                path.replace(wanted)
    except BaseException:
        with suppress(OSError):  # something else is in them now
            for path in created:
                path.rmdir()
        raise
