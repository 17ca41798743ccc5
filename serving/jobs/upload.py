"""Uploads: what a file is called, of which type it is, and the file in a multipart form."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from intake.files import SUFFIXES
from serving.jobs.errors import Fault, JobError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

SUFFIX_OF_TYPE: Final = {
    "text/csv": ".csv",
    "application/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/plain": ".txt",
    "application/vnd.apache.parquet": ".parquet",
    "application/x-parquet": ".parquet",
    "application/parquet": ".parquet",
    "application/jsonl": ".jsonl",
    "application/x-jsonlines": ".jsonl",
    "application/ndjson": ".jsonl",
    "application/x-ndjson": ".jsonl",
}
"""Content types that tell the type of a file whose name does not."""

_ALIASES: Final = {".ndjson": ".jsonl"}
_NAME_BYTES: Final = 200
REST_BYTES: Final = 65_536
"""Bytes that all but the file may take in a form."""


def file_name(name: str, content_type: str) -> str:
    """A name to keep an upload under: no folder, no control character, a suffix that is read.

    Args:
        name: as the client gave it, "" where it gave none.
        content_type: of the file; it tells the type where the name does not.

    Raises:
        JobError: neither does.
    """
    last = re.split(r"[/\\]", name)[-1].strip()
    plain = re.sub(r"[^\w.()+ -]", "_", last)
    stem, dot, end = plain.rpartition(".")
    read_as = _ALIASES.get(f"{dot}{end}".lower(), f"{dot}{end}")
    if read_as.lower() not in SUFFIXES:
        bare = content_type.partition(";")[0].strip().lower()
        if bare not in SUFFIX_OF_TYPE:
            raise JobError(
                Fault.UNKNOWN_TYPE,
                f"the file is called {last[:100]!r} and said to be {bare[:100] or 'nothing'!r}; "
                f"give it a filename that ends in one of {', '.join(SUFFIXES)}",
            )
        stem, read_as = plain, SUFFIX_OF_TYPE[bare]
    stem = stem.lstrip(".").encode()[: _NAME_BYTES - len(read_as.encode())].decode(errors="ignore")
    return f"{stem or 'scans'}{read_as}"


def disposition_name(header: str) -> str:
    """The file name of a Content-Disposition header, "" where it has none."""
    _, options = parse_options_header(header)
    return options.get(b"filename", b"").decode("utf-8", "replace")


class FormFile:
    """The one file of a multipart form, while it streams by; nothing is kept of the rest."""

    def __init__(self, stream: AsyncIterator[bytes], content_type: str) -> None:
        """Begin to read a form.

        Args:
            stream: the request's body.
            content_type: the request's, with its boundary.

        Raises:
            JobError: there is no boundary, or none that may be.
        """
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise JobError(
                Fault.BAD_UPLOAD,
                "the form names no boundary; let the HTTP client write Content-Type",
            )
        self.name: str | None = None
        self.content_type = ""
        self._stream = stream
        self._data: list[bytes] = []
        self._rest = 0
        self._in_file = False
        self._ended = False
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        calls: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], calls)
        except FormParserError as error:
            raise JobError(Fault.BAD_UPLOAD, f"the form cannot be read: {error}") from error

    async def open(self) -> str:
        """Read up to the file; returns its name as the form gives it.

        Raises:
            JobError: the form has no file, or is no form.
        """
        while self.name is None:
            await self._next()
            if self._ended and self.name is None:
                raise JobError(
                    Fault.BAD_UPLOAD, "the form has no file; send one part with a filename"
                )
        return self.name

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the file; ends where the form does.

        Raises:
            JobError: the form is cut short, or has a second file or too much beside it.
        """
        while True:
            data, self._data = self._data, []
            for chunk in data:
                yield chunk
            if self._ended:
                return
            await self._next()

    async def _next(self) -> None:
        try:
            chunk = await anext(self._stream)
        except StopAsyncIteration:
            raise JobError(
                Fault.BAD_UPLOAD, "the form ends before its last boundary; send it again"
            ) from None
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise JobError(Fault.BAD_UPLOAD, f"the body is no multipart form: {error}") from error

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._in_file = b"filename" in options
        if not self._in_file:
            return
        if self.name is not None:
            raise JobError(Fault.BAD_UPLOAD, "the form has more than one file; send a job for each")
        self.name = options[b"filename"].decode("utf-8", "replace")
        self.content_type = self._headers.get(b"content-type", b"").decode("latin-1")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])
            return
        self._rest += end - start
        if self._rest > REST_BYTES:
            raise JobError(
                Fault.BAD_UPLOAD, "the form has more than a file in it; send the file alone"
            )

    def _on_part_end(self) -> None:
        self._in_file = False

    def _on_end(self) -> None:
        self._ended = True
