"""Live video for tests: MPEG-TS that is sent, or written, a little at a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from videos import write


def mpegts(folder: Path, count: int, size: tuple[int, int] = (32, 48)) -> bytes:
    """Return a video with 10 frames per second; frame i is uniformly gray, with the value 20 i."""
    return write(folder / "sent.ts", count, size).read_bytes()


def pieces(data: bytes, count: int) -> list[bytes]:
    """Cut data into pieces of about the same size."""
    size = -(-len(data) // count)
    return [data[i : i + size] for i in range(0, len(data), size)]


class Server:
    """A TCP server that sends one of several videos to each client in turn, and then goes away.

    Args:
        videos: The videos.
        pause: Seconds between two of the 20 pieces of a video; None sends nothing at all.
    """

    def __init__(self, videos: Sequence[bytes], pause: float | None = 0.005) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._videos, self._pause = videos, pause
        if pause is not None:
            Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        for video in self._videos:
            client, _ = self._socket.accept()
            with client:
                for piece in pieces(video, 20):
                    client.sendall(piece)
                    time.sleep(self._pause)
        self._socket.close()


def write_slowly(path: Path, data: bytes, pause: float = 0.01) -> None:
    """Append data to a file a little at a time, in a thread."""

    def work() -> None:
        with path.open("ab", buffering=0) as file:
            for piece in pieces(data, 20):
                file.write(piece)
                time.sleep(pause)

    Thread(target=work, daemon=True).start()
