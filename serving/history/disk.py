"""A shelf in LMDB: one folder, one file, shared by the processes of one machine.

Without syncing, a commit is in the operating system's hands: it survives the death of the
process, not of the machine. LMDB never overwrites pages in use, so the folder opens as of the last
commit whatever kills the process. Processes take turns in writing. What is deleted leaves room
that is filled again; the file does not shrink.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lmdb

from serving.history import HistoryError
from serving.history.shelf import Pages, T

FIRST_MAP_BYTES: Final = 1 << 30
"""Address space that is taken at first; it doubles when the store fills it."""

_VERSION_KEY, _VERSION = b"version", b"1"
_HOUR: Final = struct.Struct(">I")


class LmdbShelf:
    """Values in a folder.

    Args:
        folder: is made where it is missing.
        power: sync each transaction to the disk, so that it survives power loss.
        map_bytes: address space to begin with.

    Raises:
        HistoryError: the folder cannot be opened, is open in this process already, or holds
            another version.
    """

    def __init__(self, folder: Path, power: bool, map_bytes: int = FIRST_MAP_BYTES) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._env: Any = lmdb.open(
                str(folder),
                map_size=map_bytes,
                max_dbs=2,
                sync=power,
                metasync=power,
                readahead=False,
                max_readers=512,
            )
            self._env.reader_check()
            self._values = self._env.open_db(b"values")
            self._due = self._env.open_db(b"due", dupsort=True, dupfixed=True)
        except (lmdb.Error, OSError) as error:
            raise self._wrong(error, "open it once a process, in a folder you may write") from error
        version = self.write(_version)
        if version != _VERSION:
            self.close()
            raise HistoryError(
                f"{folder} holds a history of version {version.decode()}, this service writes "
                f"version {_VERSION.decode()}; name another folder"
            )

    def read(self, job: Callable[[Pages], T]) -> T:
        return self._do(job, write=False)

    def write(self, job: Callable[[Pages], T]) -> T:
        return self._do(job, write=True)

    def close(self) -> None:
        self._env.close()

    def _do(self, job: Callable[[Pages], T], write: bool) -> T:
        try:
            while True:
                try:
                    with self._env.begin(write=write) as txn:
                        return job(_Pages(txn, self._values, self._due))
                except lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
                except lmdb.MapResizedError:  # by another process
                    self._env.set_mapsize(0)
        except (lmdb.Error, OSError) as error:
            raise self._wrong(error, "see to the disk and its free space") from error

    def _wrong(self, error: Exception, remedy: str) -> HistoryError:
        return HistoryError(f"the history in {self._folder} does not work ({error}); {remedy}")


def _version(pages: Pages) -> bytes:
    version = pages.get(_VERSION_KEY)
    if version is None:
        pages.put(_VERSION_KEY, _VERSION)
    return version or _VERSION


class _Pages:
    """One LMDB transaction."""

    def __init__(self, txn: Any, values: Any, due: Any) -> None:
        self._txn, self._values, self._due = txn, values, due

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, db=self._values)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._values)

    def delete(self, key: bytes) -> None:
        self._txn.delete(key, db=self._values)

    def items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        with self._txn.cursor(db=self._values) as cursor:
            there = cursor.set_range(prefix)
            while there and cursor.key().startswith(prefix):
                found.append(cursor.item())
                there = cursor.next()
        return found

    def note_due(self, hour: int, name: bytes) -> None:
        self._txn.put(_HOUR.pack(hour), name, db=self._due)

    def take_due(self, hour: int) -> tuple[int, bytes] | None:
        with self._txn.cursor(db=self._due) as cursor:
            if not cursor.first():
                return None
            noted, name = cursor.item()
            if _HOUR.unpack(noted)[0] > hour:
                return None
            cursor.delete()
        return _HOUR.unpack(noted)[0], name
