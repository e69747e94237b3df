"""Text files as a stream of documents; a document is a list of paragraphs.

| ending                                   | document              | paragraph                   |
|------------------------------------------|-----------------------|-----------------------------|
| .txt, and .gz .xz .zst with or without it| up to a blank line    | a line                      |
| .jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst | an object a line      | a line of its text          |
| .parquet                                 | a row                 | a line of its text          |
| a data set of the `datasets` library     | a row                 | a line of its text          |
"""

from __future__ import annotations

import codecs
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from glyphcrm.data.dataset_rows import PREFIX, DatasetPiece, dataset_pieces
from glyphcrm.data.decompression import COMPRESSED, open_bytes
from glyphcrm.data.remote_files import RemoteFile, files_at, is_url
from glyphcrm.errors import UserError, listed, shown
from glyphcrm.files import file_digest
from glyphcrm.normalization import is_blank

BOM = b"\xef\xbb\xbf"
OTHER_BOMS = {  # the longer ones first: UTF-32's begins with UTF-16's
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
COMMON_NAMES = {"GB18030": "GBK", "BIG5": "Big5"}  # GBK and GB 2312 are parts of GB18030
# In both scripts, to tell encodings apart.
FREQUENT = "的一是不了在有人我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也对對你天生能"
FREQUENT_SHARE = 0.04  # Chinese text has 10 to 27 % of these, Japanese read as Chinese some 2 %
SAMPLE = 1 << 16  # bytes to tell an encoding by
LINE_LIMIT = 1 << 26  # bytes; a longer line is no text, and would have to be held in memory
DOCUMENT_LIMIT = 1 << 26  # characters
PARQUET_ROWS = 256  # rows held in memory at a time
PARQUET_BUFFER = 1 << 20  # bytes; without it pyarrow reads a whole column chunk at once
_SURROGATE = re.compile("[\ud800-\udfff]")
TextSource = Path | RemoteFile | DatasetPiece
ENDINGS = (".txt", ".jsonl", ".parquet", *COMPRESSED, *(f".jsonl{c}" for c in COMPRESSED))


def expand(patterns: Sequence[str]) -> list[TextSource]:
    """Return what `patterns` name, each once: the files of this machine, sorted, then remote ones, then data sets.

    A pattern is a path or a glob (`**` too), a URL, or what `dataset_pieces` takes.

    Raises `UserError` for a pattern that matches nothing, a missing or empty file, a directory, or an unknown ending.
    """
    if not patterns:
        raise UserError("no text file was given; give files or patterns such as 'corpus/*.txt.xz'")
    found: dict[str, Path] = {}
    remote: dict[str, RemoteFile] = {}
    pieces: list[DatasetPiece] = []
    for pattern in dict.fromkeys(patterns):
        if pattern.startswith(PREFIX):
            pieces += dataset_pieces(pattern)
            continue
        for file in _matches(pattern):
            _kind(file)
            if source_size(file) == 0:
                raise UserError(f"{file} is empty; take it out of the list of text files")
            if isinstance(file, Path):
                found.setdefault(os.path.realpath(file), file)
            else:
                remote.setdefault(str(file), file)
    return [*sorted(found.values()), *(remote[name] for name in sorted(remote)), *pieces]


def has_columns(source: TextSource) -> bool:
    """Return whether its text stands in a column, or under a key, of each row."""
    return isinstance(source, DatasetPiece) or _kind(source) != ".txt"


def source_size(source: TextSource) -> int:
    """Return the bytes of a source, compressed or not; 1 where they are not known."""
    size = source.stat().st_size if isinstance(source, Path) else source.size
    return 1 if size is None else size


def source_digest(source: TextSource, cache: Path | None = None) -> str:
    """Return what changes when the content of a source does.

    Of a file of this machine that is its SHA-256 (`cache`: see `file_digest`); of others, what their server says.
    """
    if isinstance(source, Path):
        return file_digest(source, cache)
    if isinstance(source, RemoteFile):
        return source.mark
    return json.dumps([file_digest(Path(f), cache) if os.path.isfile(f) else f for f in source.files])


def iter_documents(
    sources: Sequence[TextSource], *, text_column: str = "text", may_be_blank: bool = False
) -> Iterator[list[str]]:
    """Yield the documents of `sources` in order, one at a time, without their blank paragraphs.

    Only LF and CR LF end a line; one of which normalisation leaves nothing (white space, characters of zero width)
    counts as blank. A byte order mark at the start of a file is ignored. `text_column` is the key (.jsonl) or the
    column (.parquet, data sets) that holds the text.

    Raises `UserError`, which names the file and the byte, line or row, for bytes that are not UTF-8, broken
    compression or JSON, a missing key or column, text that is no string or too long, and sources without
    any text, unless they `may_be_blank`.
    """
    document: list[str] | None = None
    for source in sources:
        if isinstance(source, DatasetPiece):
            documents = _documents_of(source.values(text_column))
        elif (kind := _kind(source)) == ".txt":
            documents = _plain_documents(source)
        else:
            documents = _documents_of((_jsonl_values if kind == ".jsonl" else _parquet_values)(source, text_column))
        for document in documents:
            yield document
    if document is None and not may_be_blank:
        raise UserError(f"no text in {', '.join(map(str, sources)) or 'an empty list of files'}")


def _matches(pattern: str) -> Sequence[Path | RemoteFile]:
    if is_url(pattern):
        files = files_at(pattern)
        if not isinstance(files, Path):
            return files
        pattern = str(files)
    path = Path(pattern)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name its files, for example '{path}/*.txt'")
    if path.exists():
        return [path]
    if not glob.has_magic(pattern):
        raise UserError(f"{path}: no such file")
    matches = [Path(match) for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]
    if not matches:
        raise UserError(f"no file matches '{pattern}'")
    return matches


def _kind(path: Path | RemoteFile) -> str:
    """Return ".txt", ".jsonl" or ".parquet"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        inner = suffixes[-2] if len(suffixes) > 1 else ".txt"
        if inner in (".txt", ".jsonl"):
            return inner
    elif suffixes and suffixes[-1] in (".txt", ".jsonl", ".parquet"):
        return suffixes[-1]
    raise UserError(f"{path}: unknown ending; known are {' '.join(ENDINGS)} and .txt before a compression")


def read_lines(path: Path | RemoteFile) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, compressed or not, without their ends.

    A byte order mark at the start is no part of the first line.

    Raises `UserError` for a line over 64 MiB, or bytes that are no UTF-8; where another encoding shows, it is named.
    """
    with open_bytes(path) as stream:
        yield from lines_of(stream, str(path), path.suffix.lower() in COMPRESSED)


def lines_of(stream: BinaryIO, name: str, decompressed: bool = False) -> Iterator[str]:
    """Do the same for a stream; `name` is for messages, and so is whether it has been decompressed."""
    offset = 0
    # Cut into lines first, then decode: LF is never part of another UTF-8 character.
    while line := stream.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT:
            raise UserError(f"{name}: the line at byte {offset} is longer than 64 MiB; is this text?")
        skip = len(BOM) if offset == 0 and line.startswith(BOM) else 0
        try:
            text = line[skip:].decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {offset + skip + error.start}{' of the decompressed text' if decompressed else ''}"
            more = b""
            with suppress(OSError, UserError):  # no text needs it
                more = stream.read(SAMPLE) if stream.seekable() else b""  # another may wait for what is not there yet
            advice = encoding_advice(line[skip:], offset, error.start, more)
            raise UserError(f"{name}: not UTF-8 at {where}; {advice}") from None
        offset += len(line)
        yield text.removesuffix("\n").removesuffix("\r")


def encoding_advice(line: bytes, offset: int, start: int, more: bytes = b"") -> str:
    """Say what to do about the line at `offset` of a file, which is no UTF-8 from its byte `start` on.

    `more` is what follows, cut off anywhere.
    """
    encoding = next((name for mark, name in OTHER_BOMS.items() if offset == 0 and line.startswith(mark)), None)
    if encoding is None and b"\0" in line:
        return "zero bytes, as in UTF-16; is this text? convert it to UTF-8 first"
    if encoding is None and line[:start].isascii():
        shares = _shares_of_frequent((line + more)[:SAMPLE])
        encoding = max(shares, key=lambda name: shares[name], default=None)
        if encoding is not None and shares[encoding] < FREQUENT_SHARE:
            return (
                "it is in another encoding, perhaps GBK (iconv -f GB18030 -t UTF-8); convert it, and look at the result"
            )
    if encoding is None:
        return "it is damaged, or in another encoding; convert it to UTF-8 first"
    return f"it looks like {COMMON_NAMES.get(encoding, encoding)}: convert it with iconv -f {encoding} -t UTF-8"


def _shares_of_frequent(sample: bytes) -> dict[str, float]:
    """Return for each encoding in which `sample`, cut off anywhere, can be how many of its characters are frequent.

    Bytes of one often decode in the other as well, and those of Japanese and Korean in both: to rare characters.
    """
    shares = {}
    for name, codec in (("GB18030", "gb18030"), ("BIG5", "cp950")):
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(codec)().decode(sample)
            foreign = sum(not char.isascii() for char in text)
            shares[name] = sum(map(text.count, FREQUENT)) / max(foreign, 1)
    return shares


def read_json_objects(path: Path | RemoteFile, keys: Iterable[object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield "file:line" and the JSON object of each line that is not blank.

    Raises `UserError` as `read_lines` does, and for a line that is no object; `keys` are those it should have.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if is_blank(line):
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}; give one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: a JSON {type(row).__name__}, not an object with {listed(keys)}")
        yield where, row


def checked_text(value: object, where: str) -> str:
    """Return `value`; raise `UserError` if it is no string, or no Unicode text."""
    if not isinstance(value, str):
        raise UserError(f"{where} is {type(value).__name__}, not a string")
    if _SURROGATE.search(value):
        raise UserError(f"{where} holds half of a surrogate pair, which is no character")
    return value


def _plain_documents(path: Path | RemoteFile) -> Iterator[list[str]]:
    paragraphs: list[str] = []
    characters = 0
    for line in read_lines(path):
        if line[:1].isalnum() or not is_blank(line):  # the first question is the quicker one
            paragraphs.append(line)
            characters += len(line)
            if characters > DOCUMENT_LIMIT:
                raise UserError(
                    f"{path}: more than {DOCUMENT_LIMIT} characters without a blank line; put a blank "
                    "line between documents, or use .jsonl with one object a document"
                )
        elif paragraphs:
            yield paragraphs
            paragraphs, characters = [], 0
    if paragraphs:
        yield paragraphs


def _jsonl_values(path: Path | RemoteFile, text_column: str) -> Iterator[tuple[str, object]]:
    for where, row in read_json_objects(path, (text_column,)):
        if text_column not in row:
            raise UserError(f"{where}: no key {shown(text_column)}; the keys are {listed(row) or 'none'}")
        yield f"{where}: {shown(text_column)}", row[text_column]


def _parquet_values(path: Path | RemoteFile, text_column: str) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f'{path}: .parquet needs pyarrow: pip install "glyphcrm[pretrain]"') from None
    row = 0
    try:
        opened = path if isinstance(path, Path) else path.open()
        with pq.ParquetFile(opened, buffer_size=PARQUET_BUFFER) as file:
            names = file.schema_arrow.names
            if text_column not in names:
                raise UserError(f"{path}: no column {shown(text_column)}; the columns are {listed(names)}")
            for batch in file.iter_batches(PARQUET_ROWS, columns=[text_column]):
                for value in batch.column(0):
                    yield f"{path}: row {row} of {shown(text_column)}", value.as_py()
                    row += 1
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {row} of {shown(text_column)} is not UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {error}") from None


def _documents_of(values: Iterable[tuple[str, object]]) -> Iterator[list[str]]:
    for where, value in values:
        lines = (line.removesuffix("\r") for line in checked_text(value, where).split("\n"))
        if document := [line for line in lines if not is_blank(line)]:
            yield document
