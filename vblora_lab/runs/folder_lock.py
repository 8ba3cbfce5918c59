"""One session at a time in a folder: a lock of the system's, which ends with its process."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from vblora_lab.errors import SessionError
from vblora_lab.runs.layout import LOCK

PATIENCE = 1.0  # seconds; another that only looks has the lock for less


class FolderLock:
    """The lock on the folder of a run, free at first.

    A process that is killed gives it back. The file stays and means nothing by itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: FileLock | None = None

    def check(self) -> None:
        """Raise `SessionError` while someone else has the lock; changes nothing."""
        if self._held is None and (self._folder / LOCK).is_file():
            try:
                self.acquire()
            except OSError:
                return  # nothing can be written there, which is found and told later
            finally:
                self.release()

    def acquire(self) -> None:
        """Take the lock; the folder is made. Raises `SessionError`, or `OSError` where none can be.

        Any thread may `release` it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        # A lock file whose mere existence locks would outlive a process that is killed.
        lock = FileLock(self._folder / LOCK, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise SessionError(
                f"another process, or another session of this one, trains into "
                f"{str(self._folder)!r} now. Wait for its end, or choose another folder."
            ) from error
        self._held = lock

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._held is not None:
            self._held.release()
            self._held = None
