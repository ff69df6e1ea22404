"""What travels to a cluster with a job: folders as packages, named by what is in them, so that none is sent twice."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ClusterNotFoundError, ConfigError
from sp_ray_ml.storage import storage_errors

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

    from sp_ray_ml.cluster._jobs import Dashboard

    _Rules = list[tuple[Path, GitIgnoreSpec]]

__all__ = ["LARGEST", "Package", "folder_package", "is_there", "unpack", "upload"]

LARGEST = 512 * 2**20
"""Ray keeps packages in the memory of the head, and takes none larger."""
_LEFT_OUT = re.compile(
    r"\.git|\.hg|\.ipynb_checkpoints|\.mypy_cache|\.pytest_cache|\.ruff_cache|\.venv|__pycache__|node_modules"
    r"|mlruns|mlartifacts|mlflow\.db(-\w+)?"  # what MLflow keeps here of all runs, and is another after each
)
_IGNORES = (".gitignore", ".rayignore")
_LARGEST_TOLD = 5
_BYTES_A_SECOND = 2**20
"""So slow may a connection be."""


@dataclass(frozen=True)
class Package:
    """Files that a job gets, by their paths there.

    Attributes:
        name: Of what is in it: the same files have the same name.
        files: A file of this machine, or what is in it.
        marks: Of each file its SHA-256, its size in bytes and its mode.
    """

    name: str
    files: Mapping[str, Path | bytes]
    marks: Mapping[str, tuple[str, int, int]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.marks.values())

    @property
    def uri(self) -> str:
        """What Ray's runtime environment calls it."""
        return f"gcs://{self.name}"

    @classmethod
    def of(cls, files: Mapping[str, Path | bytes]) -> Package:
        """Files as a package.

        Raises:
            ConfigError: A file's name cannot be written down.
            StorageError: One cannot be read.
        """
        digest, marks = hashlib.sha256(), {}
        for inside, file in sorted(files.items()):
            try:
                written = inside.encode()
            except UnicodeEncodeError:
                raise ConfigError(
                    "the name of a file is no text, so it cannot travel", where=repr(inside),
                    hint="Give it another name, or name it in .rayignore",
                ) from None  # fmt: skip
            mark, size, mode = marks[inside] = _mark(_read(inside, file), file)
            digest.update(written + f"\0{mode:o}\0{size}\0{mark}".encode())
        return cls(f"_ray_pkg_{digest.hexdigest()[:32]}.zip", files, marks)

    def kept(self, place: Path) -> Package:
        """The same package from copies of its files, whatever becomes of them.

        Args:
            place: A folder for the copies, which is made.

        Raises:
            ConfigError: A file is another than when the package was named.
            StorageError: One cannot be read or copied.
        """
        copies = dict(self.files)
        for inside, file in self.files.items():
            if isinstance(file, Path):
                content, copies[inside] = _read(inside, file), (copy := place / inside)
                self._check(inside, content, file)
                with storage_errors(copy):
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(content)
                    copy.chmod(self.marks[inside][2] & 0o777)
        return replace(self, files=copies)

    def data(self, only: Collection[str] | None = None) -> bytes:
        """As a zip, the same to the byte for the same files.

        Args:
            only: Of these files; of all without.

        Raises:
            ConfigError: A file is another than when the package was named: what bears a name is what it names.
            StorageError: One cannot be read.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
            for inside, file in sorted(self.files.items()):
                if only is not None and inside not in only:
                    continue
                entry, content = zipfile.ZipInfo(inside), _read(inside, file)
                self._check(inside, content, file)
                entry.external_attr = self.marks[inside][2] << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                package.writestr(entry, content)
        return buffer.getvalue()

    def _check(self, inside: str, content: bytes, file: Path | bytes) -> None:
        if _mark(content, file) != self.marks[inside]:
            raise ConfigError(
                "the file was changed while it was being sent", where=inside, hint="Start it again"
            )


def unpack(data: bytes, into: Path) -> None:
    """A package's files into a folder, which is made, as they were; only for packages of our own making."""
    into.mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        for entry in package.infolist():
            mode = entry.external_attr >> 16 & 0o777
            Path(package.extract(entry, into)).chmod(mode or 0o644)


def _read(inside: str, file: Path | bytes) -> bytes:
    with storage_errors(inside, "read"):
        return file if isinstance(file, bytes) else file.read_bytes()


def _mark(content: bytes, file: Path | bytes) -> tuple[str, int, int]:
    # By its mode: of a file on a mount without programs the system says that it is none.
    runs = isinstance(file, Path) and bool(file.stat().st_mode & 0o111)
    return hashlib.sha256(content).hexdigest(), len(content), 0o100755 if runs else 0o100644


def upload(dashboard: Dashboard, package: Package) -> bool:
    """Send a package, unless the cluster has it; whether it was sent.

    Raises:
        ClusterError: The cluster refused, or cannot be reached.
    """
    if is_there(dashboard, package):
        return False
    data = package.data()
    patience_s = 30 + len(data) / _BYTES_A_SECOND
    dashboard.request(
        "PUT", _path(package), data, content_type="application/octet-stream", timeout_s=patience_s
    )
    return True


def is_there(dashboard: Dashboard, package: Package) -> bool:
    """Whether the cluster has a package.

    Raises:
        ClusterError: It cannot be reached.
    """
    try:
        dashboard.request("GET", _path(package))
    except ClusterNotFoundError:
        return False
    return True


def _path(package: Package) -> str:
    return f"/api/packages/gcs/{package.name}"


def folder_package(folder: Path) -> Package:
    """A folder's files but for what `.gitignore` and `.rayignore` leave out, those of the repository above it, too.

    What a link leads to travels in its place. Empty folders and links to nothing do not.

    Raises:
        ConfigError: It is no folder, or too large; the message has the largest files.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=str(folder))
    folder = folder.absolute()
    found = {file.relative_to(folder).as_posix(): file for file in _walk(folder, _rules_above(folder), ())}
    sizes = {inside: file.stat().st_size for inside, file in found.items()}
    if (total := sum(sizes.values())) > LARGEST:
        largest = sorted(sizes, key=lambda inside: -sizes[inside])[:_LARGEST_TOLD]
        lines = [f"{_size(total)} in {len(sizes)} files, the largest:"]
        lines += [f"  {_size(sizes[inside]):>9}  {inside}" for inside in largest]
        raise ConfigError(
            f"the folder is too large to travel, {_size(LARGEST)} are the most: " + "\n".join(lines),
            where=str(folder),
            hint="Name what the job does not need in .gitignore or .rayignore; put data into a warehouse or a bucket",
        )  # fmt: skip
    return Package.of(found)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _walk(folder: Path, ignores: _Rules, above: tuple[Path, ...]) -> Iterator[Path]:
    """Files of a folder and those below that no rule of it or of a folder above leaves out."""
    above = (*above, folder.resolve())
    rules = [*ignores, *_rules_of(folder)]
    with storage_errors(folder, "read"):
        items = sorted(os.scandir(folder), key=lambda item: item.name)
    for item in items:
        path = folder / item.name
        is_folder = path.is_dir()
        if _LEFT_OUT.fullmatch(item.name) or _ignored(path, rules, is_folder=is_folder):
            continue
        if is_folder:
            target = path.resolve() if item.is_symlink() else path
            # A link to a folder that it lies in would have no end.
            if not any(each.is_relative_to(target) for each in above):
                yield from _walk(path, rules, above)
        elif path.is_file():
            yield path


def _rules_above(folder: Path) -> _Rules:
    """Git's rules of the repository that a folder lies in, from its root down to what is above the folder."""
    root = next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)
    if root is None:
        return []
    between = [root / each for each in folder.relative_to(root).parents][::-1]
    rules = [*_rules_in(root, root / ".git" / "info" / "exclude")]
    for each in between:
        rules += _rules_in(each, each / ".gitignore")
    # Of a folder that Git does not look into, somebody's scratch or below a home of dotfiles, it says nothing.
    apart = any(_ignored(each, rules, is_folder=True) for each in (*between[1:], folder) if each != root)
    return [] if apart else rules


def _rules_of(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in _IGNORES:
        yield from _rules_in(folder, folder / name)


def _rules_in(folder: Path, file: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    from pathspec import GitIgnoreSpec

    if file.is_file():
        with storage_errors(file, "read"):
            lines = file.read_text(errors="replace").splitlines()
        yield folder, GitIgnoreSpec(pattern for line in lines for pattern in _patterns(line))


def _patterns(line: str) -> Iterator[Any]:
    """The pattern of a line of `.gitignore`; none of one that is wrong, which Git passes over too."""
    from pathspec import GitIgnoreSpec

    with suppress(ValueError, re.error):
        yield from GitIgnoreSpec.from_lines([line]).patterns


def _ignored(path: Path, rules: _Rules, *, is_folder: bool) -> bool:
    """By the last rule that speaks of it, the nearest file of rules first."""
    for folder, spec in reversed(rules):
        inside = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        if (said := spec.check_file(inside).include) is not None:
            return said
    return False
