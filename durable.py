"""The only code that changes files that matter: atomic writes, folder publishing, hash manifests.

The rules (measured on ext4, xfs and btrfs): a file is written to a temporary sibling, fsynced, renamed,
and its folder fsynced; a folder is published complete, its manifest written last, by one rename; a move
between folders syncs the destination first. A flipped byte loads silently in both torch and safetensors,
so every published folder carries the sha256 of each of its files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from errors import IntegrityError

MANIFEST = "manifest.json"
PARTIAL_SUFFIX = ".partial"
COPY_CHUNK_BYTES = 1 << 20
SEALED_SCHEMA = 2
"""Schema of a manifest that carries a hash of itself."""
_SCHEMA_WITHOUT_SEAL = 1
_UNSEALED = "0" * 64
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_name(path: Path) -> Path:
    """Return the temporary sibling under which `path` is prepared."""
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    """Leave no temporary file behind when the disk is full or broken; only a kill does."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data` in one step: a reader sees the old bytes or the new, never a mixture.

    With `sync` false a power cut may undo the replacement, which is right for files that are rewritten
    every few seconds. The bytes are synced in any case: without that, xfs keeps the new name and an empty
    file behind it.
    """
    temporary = partial_name(path)
    with _removed_on_error(temporary):
        with open(temporary, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.replace(temporary, path)
    if sync:
        fsync_folder(path.parent)


def to_json(document: Any) -> bytes:
    """Serialise to indented JSON; not-a-number and infinity become null, dates ISO strings."""
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def write_json(path: Path, document: Any, *, sync: bool = True) -> None:
    """Replace `path` by the JSON of `document` in one step."""
    write_bytes(path, to_json(document), sync=sync)


def read_json(path: Path) -> Any:
    """Parse the JSON document at `path`; raise IntegrityError with the path when it is not JSON."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise IntegrityError(f"{path}: not valid JSON ({error}); the file is damaged") from error


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each name made to survive a power cut."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        with contextlib.suppress(FileExistsError):
            parent.mkdir()
        fsync_folder(parent.parent)


def copy_hashed(
    source: int, destination: Path, on_progress: Callable[[], None] = lambda: None
) -> tuple[str, int]:
    """Copy an open file descriptor from its start to the new file `destination`, synced.

    Returns the sha256 in hex and the size in bytes of the copy; `on_progress` is called for each chunk.
    """
    digest = hashlib.sha256()
    size = 0
    with open(destination, "xb", buffering=0) as file:
        while chunk := os.pread(source, COPY_CHUNK_BYTES, size):
            on_progress()
            digest.update(chunk)
            size += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def copy_file(source: Path, destination: Path) -> None:
    """Copy one regular file to a new name, synced."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        copy_hashed(descriptor, destination)
    finally:
        os.close(descriptor)


def copy_once(source: Path, destination: Path) -> None:
    """Copy a file so that `destination` appears whole or not at all; do nothing when it is there."""
    if os.path.lexists(destination):
        return
    temporary = partial_name(destination)
    temporary.unlink(missing_ok=True)
    with _removed_on_error(temporary):
        copy_file(source, temporary)
        rename_new(temporary, destination)
    fsync_folder(destination.parent)


def rename_new(source: Path, destination: Path) -> None:
    """Rename without ever replacing; raise FileExistsError when `destination` is taken."""
    result = _libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), _RENAME_NOREPLACE
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(source), None, str(destination))
    # The file system has no RENAME_NOREPLACE; trainbox is the only writer of these names.
    if destination.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
    os.rename(source, destination)


def move_file(source: Path, destination: Path) -> None:
    """Move a file to a free name in another folder of the same file system; safe to repeat.

    After a power cut some file systems show the file under both names, and renaming one link of an inode
    onto another does nothing and reports success: that case removes the older name.
    """
    if destination.exists() and os.path.samestat(source.lstat(), destination.lstat()):
        source.unlink()
    else:
        rename_new(source, destination)
    fsync_folder(destination.parent)
    fsync_folder(source.parent)


def point_symlink(link: Path, target: str) -> None:
    """Make `link` point to `target` by one rename; a reader always finds the old or the new."""
    temporary = partial_name(link)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    fsync_folder(link.parent)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal_folder(folder: Path, facts: dict[str, Any] | None = None) -> None:
    """Sync every file of `folder`, then write its manifest last.

    The manifest holds `facts`, under ``files`` the size in bytes and sha256 of each file by its relative
    path, and under ``seal`` a hash of itself. A folder without a manifest is torn and is never used.
    """
    files = {}
    for path in _regular_files(folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        files[str(path.relative_to(folder))] = {
            "size_bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    for child in sorted(folder.rglob("*")):
        if child.is_dir():
            fsync_folder(child)
    fsync_folder(folder)
    document = {"schema_version": SEALED_SCHEMA, **(facts or {}), "files": files, "seal": _UNSEALED}
    unsealed = to_json(document)
    seal = hashlib.sha256(unsealed).hexdigest()
    write_bytes(folder / MANIFEST, _with_seal(unsealed, _UNSEALED, seal))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a sealed folder without checking its files; IntegrityError when torn."""
    path = folder / MANIFEST
    if not path.is_file():
        raise IntegrityError(f"{folder}: no {MANIFEST}, the folder was never completed")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{path}: not a manifest, its 'files' are missing")
    return manifest


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every file of a sealed folder against its manifest and return the manifest.

    Raises IntegrityError naming the first file that is missing or differs.
    """
    manifest = read_manifest(folder)
    damage = next(find_damage(folder), None)
    if damage is not None:
        raise IntegrityError(damage)
    return manifest


def find_damage(folder: Path) -> Iterator[str]:
    """Yield one sentence for each file of a sealed folder that is missing or is not what was sealed.

    The manifest itself is one of them. Raises IntegrityError when it cannot be read at all.
    """
    manifest = read_manifest(folder)
    if not _is_manifest_whole(folder / MANIFEST, manifest):
        yield f"{folder / MANIFEST}: its bytes differ from its own seal; the file is damaged"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: missing, but listed in {MANIFEST}"
        elif path.stat().st_size != expected["size_bytes"] or sha256_file(path) != expected["sha256"]:
            yield f"{path}: its bytes differ from {MANIFEST}; the file is damaged"


def is_sealed(folder: Path) -> bool:
    """Tell whether every file of `folder` is there and matches its manifest."""
    try:
        verify_folder(folder)
    except IntegrityError:
        return False
    return True


def publish_folder(staging: Path, destination: Path) -> None:
    """Make a sealed staging folder appear under its final name, whole, by one rename."""
    read_manifest(staging)
    rename_new(staging, destination)
    fsync_folder(destination.parent)


def move_folder(source: Path, destination: Path) -> None:
    """Move a whole folder to a free name on the same file system by one rename."""
    rename_new(source, destination)
    fsync_folder(destination.parent)
    fsync_folder(source.parent)


def copy_sealed(source: Path, staging: Path) -> None:
    """Copy a sealed folder to `staging`, read the copy back and compare it with its manifest.

    What an interrupted copy left there is removed first. Raises IntegrityError that names the damaged file
    when `source` is not what was sealed. The caller publishes `staging`.
    """
    manifest = read_manifest(source)
    if staging.exists():
        remove_tree(staging)
    make_folder(staging)
    for name, expected in manifest["files"].items():
        make_folder((staging / name).parent)
        descriptor = os.open(source / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            sha256, _ = copy_hashed(descriptor, staging / name)
        finally:
            os.close(descriptor)
        if sha256 != expected["sha256"]:
            raise IntegrityError(f"{source / name}: its bytes differ from {MANIFEST}; the file is damaged")
    copy_file(source / MANIFEST, staging / MANIFEST)
    for folder in {(staging / name).parent for name in (*manifest["files"], MANIFEST)}:
        fsync_folder(folder)
    verify_folder(staging)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all it holds; links inside are removed, not followed.

    It disappears under its own name first, so that a crash never leaves half of it to be read.
    """
    doomed = folder
    if not folder.name.endswith(PARTIAL_SUFFIX):
        doomed = folder.with_name(f".{folder.name}.removed{PARTIAL_SUFFIX}")
        if doomed.exists():
            shutil.rmtree(doomed)
        os.rename(folder, doomed)
    shutil.rmtree(doomed)
    fsync_folder(folder.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line to a log in a single write, so that a reader never sees half of it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, line.rstrip(b"\n") + b"\n")
    finally:
        os.close(descriptor)


def _with_seal(manifest: bytes, before: str, seal: str) -> bytes:
    """Put `seal` where `before` stands, at the end of a manifest."""
    head, _, tail = manifest.rpartition(before.encode())
    return head + seal.encode() + tail


def _is_manifest_whole(path: Path, manifest: dict[str, Any]) -> bool:
    """Tell whether a manifest is, byte for byte, the one that was sealed."""
    if manifest.get("schema_version") == _SCHEMA_WITHOUT_SEAL:
        return True
    seal = manifest.get("seal")
    if manifest.get("schema_version") != SEALED_SCHEMA or not isinstance(seal, str):
        return False
    return hashlib.sha256(_with_seal(path.read_bytes(), seal, _UNSEALED)).hexdigest() == seal


def _regular_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if stat.S_ISREG(path.lstat().st_mode) and path != folder / MANIFEST:
            yield path
