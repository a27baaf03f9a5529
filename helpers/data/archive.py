"""Unpack a downloaded zip without trusting it."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from helpers.store import fingerprint, replacing

MAX_BYTES = 20 * 2**30
BLOCK = 2**20


def hidden(name):
    """True for what systems leave behind: dot files, __MACOSX, Thumbs.db, desktop.ini."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def unpack(archive, cache, max_bytes=MAX_BYTES):
    """Unpack a zip into a folder of its own below `cache`; if equal contents are there already, use them.

    Parameters
    ----------
    archive : path of the zip
    cache : folder
    max_bytes : limit for all files together, counted while they are written, whatever the zip says of itself

    Returns
    -------
    Path of the folder

    Raises
    ------
    ValueError
        if it is no zip, is damaged or encrypted, leads outside its folder (.., absolute path, drive, link),
        holds one path twice, or passes the limit; nothing is left on disk then
    """
    archive = Path(archive)
    if not zipfile.is_zipfile(archive):
        raise ValueError(f"{archive.name}: not a zip, or cut off while it was downloaded; download it again")
    folder = Path(cache) / f"{archive.stem}-{fingerprint(archive)}"
    if folder.is_dir():
        return folder
    try:
        with zipfile.ZipFile(archive) as opened, replacing(folder) as temporary:
            written = 0
            temporary.mkdir()
            for path, info in _members(opened, archive.name).items():
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, (temporary / path).open("wb") as file:
                    while block := source.read(BLOCK):
                        written += file.write(block)
                        if written > max_bytes:
                            raise ValueError(
                                f"{archive.name}: unpacks to more than {max_bytes} bytes, at {info.filename!r}; "
                                "unpack it yourself if you trust it, and give the folder"
                            )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{archive.name}: damaged ({error}); download it again, or unpack it yourself") from error
    return folder


def _members(opened, archive):
    """Relative path to entry, of all files worth unpacking, each of them checked before anything is written."""
    members = {}
    for info in opened.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        wrong = None
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", info.filename):
            wrong = "leads outside the archive; do not use this file, download it from its source"
        elif stat.S_ISLNK(info.external_attr >> 16):
            wrong = "is a link; do not use this file, download it from its source"
        elif info.flag_bits & 1:
            wrong = "is encrypted; unpack it with its password and give the folder"
        elif path in members:
            wrong = "stands twice in the archive; download it from its source"
        if wrong:
            raise ValueError(f"{archive}: {info.filename!r} {wrong}")
        if path.parts and not info.is_dir() and not any(hidden(part) for part in path.parts):
            members[path] = info
    return members
