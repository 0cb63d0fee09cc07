"""The walk over a folder of images: one rule book for what is taken, what is left out, and which folders are splits."""

import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from taming_jax.data.files import ARRAYS, FORMATS
from taming_jax.errors import UserError, printable

# An MPO is a JPEG that holds several.
ENDINGS = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
HINTS = dict.fromkeys((".heic", ".heif", ".hif"), " (pip install pillow-heif reads them)")
SYSTEM = {  # in lower case; names that begin with a dot are hidden
    "__macosx",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
}
SET = r"([-_ ]?(set|split|data|images|imgs))?[-_ ]?\d*(?![a-z0-9])"
PARTS = {  # what folders and files of a split are called, in lower case
    "train": re.compile(f"(?<![a-z0-9])(train|training|trn){SET}"),
    "validation": re.compile(f"(?<![a-z0-9])(val|valid|validation|dev|eval|evaluation|held[-_ ]?out){SET}"),
    "test": re.compile(f"(?<![a-z0-9])(test|testing|tst){SET}"),
}
# Numbers of files by the reason, and by names that tell more; an 's' in brackets is a plural's.
LeftOut = dict[str, Counter]


def is_picture(name: str) -> bool:
    """Whether a file's name is that of an image that can be read."""
    return Path(name).suffix.lower() in ENDINGS or Path(name).match(ARRAYS)


def walk(root: Path, wanted: Callable[[str], bool] = is_picture) -> tuple[list[Path], LeftOut]:
    """The files below a folder whose names are wanted, sorted, and what was left out.

    Links are followed, but for one to a folder that holds it, and for one within a linked folder to what was walked
    already: folders full of links to each other end too. Hidden and system files and folders are left out.
    """
    files, left_out, walked = [], defaultdict(Counter), set()
    # A folder; the real folders on the way to it; why all in it is left out, and the name that tells; how many links
    # lead to it. Links come after all else, so that it does not depend on the order of a disk what is walked already.
    pending, later = [(str(root), (os.path.realpath(root),), None, 0)], deque()
    while pending or later:
        folder, way, closed, links = pending.pop() if pending else later.popleft()
        if links > 1 and way[-1] in walked:
            left_out["link(s) to a folder that is taken already"][os.path.basename(folder)] += 1
            continue
        if closed is None:
            walked.add(way[-1])
        try:
            with os.scandir(folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            left_out["folder(s) that cannot be read"][os.path.basename(folder)] += 1
            continue
        for entry in entries:
            is_folder, reason = look(entry, way, closed, wanted)
            if is_folder and entry.is_symlink():
                later.append((entry.path, (*way, os.path.realpath(entry.path)), reason, links + 1))
            elif is_folder:
                pending.append((entry.path, (*way, os.path.join(way[-1], entry.name)), reason, links))
            elif reason is None:
                files.append(Path(entry.path))
            else:
                left_out[reason[0]][reason[1]] += 1
    return sorted(files), left_out


def look(
    entry: os.DirEntry, way: tuple[str, ...], closed: tuple[str, str] | None, wanted: Callable[[str], bool]
) -> tuple[bool, tuple[str, str] | None]:
    """Whether to walk into an entry of a folder, and the reason and the name if it is left out."""
    name, lower = entry.name, entry.name.lower()
    try:
        if closed is not None:
            return entry.is_dir(follow_symlinks=False), closed
        hidden, is_folder = lower.startswith("."), entry.is_dir()
        if hidden or lower in SYSTEM:
            # What they hold is counted, but links in them lead anywhere.
            kind = "hidden" if hidden else "system"
            inside = is_folder and not entry.is_symlink()
            return inside, (f"in {kind} folders" if is_folder else f"{kind} file(s)", name)
        if is_folder:
            loops = entry.is_symlink() and holds(os.path.realpath(entry.path), way)
            return not loops, ("link(s) to a folder above", name) if loops else None
        if not entry.is_file():
            return False, ("broken link(s)" if entry.is_symlink() else "of no known kind", name)
    except OSError:  # a link to itself, or a file in a folder that cannot be entered
        return False, ("broken link(s)" if entry.is_symlink() else "file(s) that cannot be read", name)
    if wanted(name):
        return False, None
    ending = Path(lower).suffix
    return False, (f"with the ending {ending[:20]}{HINTS.get(ending, '')}" if ending else "without an ending", "")


def holds(folder: str, way: Iterable[str]) -> bool:
    """Whether a real folder is one of others, or holds one of them."""
    return any(Path(place).is_relative_to(folder) for place in way)


def listed(names: Iterable[str], most: int = 5) -> str:
    """'cat, dog, fish and 7 more', on one line."""
    words = [printable(repr(name) if "," in name else name)[:60] for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def tell(left_out: LeftOut) -> str:
    """'; left out: 4 with the ending .txt, 2 in hidden folders (.git)', the most first, or ''."""
    counts = sorted(((-names.total(), reason) for reason, names in left_out.items() if names.total()))
    parts = []
    for count, reason in counts[:8]:
        names = [name for name in sorted(left_out[reason]) if name]
        words = printable(reason).replace("(s)", "s" if count < -1 else "")
        parts.append(f"{-count} {words}" + (f" ({listed(names, 3)})" if names else ""))
    if rest := sum(-count for count, _ in counts[8:]):
        parts.append(f"{rest} for other reasons")
    return f"; left out: {', '.join(parts)}" if parts else ""


def part_of(name: str) -> str | None:
    """'train', 'validation' or 'test', if a folder's name is a usual one for that part of a data set."""
    return next((part for part, usual in PARTS.items() if usual.fullmatch(name.lower())), None)


def find_splits(root: Path, files: list[Path], data: ConfigDict, beside: bool) -> dict[str, Path]:
    """The folders of 'train' and 'validation', or {} where the images are not in such folders.

    They are those that `data.splits` names, or two with usual names. beside: whether other features lie beside the
    images, in folders of the same names. Classes of the run are never splits. Raises UserError if it cannot be told.
    """
    named = {name: root / data.splits[name] for name in ("train", "validation")}
    there = [name for name, folder in named.items() if os.path.isdir(folder)]
    if len(there) == 2:
        return named
    inside = defaultdict(set)  # the folders in each of the folders in the root
    for file in files:
        folder, *within = file.relative_to(root).parts[:-1] or ("",)
        inside[folder].update(within[:1])
    usual = {part: sorted(name for name in inside if part_of(name) == part) for part in PARTS}
    usual["validation"] = usual["validation"] or usual["test"]
    if there and beside:
        (lacking,) = named.keys() - there
        perhaps = [f"; data.splits.{lacking}={printable(name)}, perhaps" for name in usual[lacking]]
        raise UserError(
            f"{named[there[0]]} is there, {named[lacking]} is not: name both by data.splits, or have neither"
            + "".join(perhaps[:1])
        )
    found = sorted({name for names in usual.values() for name in names})
    classes = () if "objects" in data.features else data.class_names  # of folders; a scene may hold a 'train'
    if not found or set(found) & set(classes):
        return {}
    if len(usual["train"]) == len(usual["validation"]) == 1:
        return {name: root / usual[name][0] for name in named}
    paired = usual["train"] and usual["validation"]
    alone = set(found) == set(inside) and any(len(folders) > 1 for folders in inside.values())
    if paired or alone or (there and len(found) > 1):
        raise UserError(
            f"data.path={data.path}: {listed(f'{name}/' for name in found)}: which images are trained on, and which are"
            f" held out? Set data.splits.train and data.splits.validation to two folders, or data.path (data_path) to"
            f" {printable(str(root / found[0]))} for all that is in it"
        )
    return {}
