"""What yaml says about places of data, as files: files, folders, globs."""

from __future__ import annotations

import glob
from pathlib import Path

from glm_lightning.data.reading.opening import KINDS, suffix_of
from glm_lightning.types import UserError

_SAVED = ("state.json", "dataset_info.json")
"""In a folder that `datasets` has written; the data lie beside them in Arrow files."""


def find(entry: str | Path, *, key: str) -> list[Path]:
    """The files of an entry: a file, a folder (what lies below it, hidden files left out), or a glob.

    Plain text counts in a folder only where there is nothing else, for it is mostly a licence or a README.

    Args:
        entry: what stands in yaml.
        key: its yaml key, for messages.

    Raises:
        UserError: it is not there, or holds no such file.
    """
    path = Path(entry).expanduser()
    if path.is_file():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / _SAVED[0]).is_file())
        raise UserError(f"{key}: {str(entry)!r} holds the splits {', '.join(splits)}; name one: {entry}/{splits[0]}")
    found = _in_folder(path) if path.is_dir() else _of_glob(path)
    if not found:
        raise UserError(
            f"{key}: {str(entry)!r} is no file, no folder with {', '.join(KINDS)} files in it, and "
            f"no glob that matches one (looked from {Path.cwd()})"
        )
    return found


def passed_over(entry: str | Path) -> list[Path]:
    """The files of a folder that are not read, for their names are none of data; none of other entries."""
    folder = Path(entry).expanduser()
    if not folder.is_dir() or any((folder / name).is_file() for name in _SAVED):
        return []
    taken = set(_in_folder(folder))
    return [file for file in _visible(folder) if file not in taken]


def _in_folder(folder: Path) -> list[Path]:
    if all((folder / name).is_file() for name in _SAVED):
        return sorted(folder.glob("data-*.arrow"))
    known = [file for file in _visible(folder) if suffix_of(file) in KINDS]
    data = [file for file in known if KINDS[suffix_of(file)] != "text"]
    return data or known


def _visible(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _of_glob(pattern: Path) -> list[Path]:
    found = map(Path, glob.iglob(str(pattern), recursive=True))  # noqa: PTH207
    return sorted(path for path in found if path.is_file())
