"""Files that are written as a whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
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
