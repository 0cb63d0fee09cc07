"""The walk over a folder of images: one rule book for what is taken, what is left out, and which folders are splits."""

import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from taming_jax.data.files import ARRAYS, FORMATS
from taming_jax.errors import UserError, printable, show

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
    "validation": re.compile(
        f"(?<![a-z0-9])(val|valid|validate|validation|dev|devel|eval|evaluate|evaluation|(held|hold)[-_ ]?out){SET}"
    ),
    "test": re.compile(f"(?<![a-z0-9])(test|testing|tst){SET}"),
}
# Folders of images, and of the maps that belong to them, which are never to be taken for classes.
IMAGES = re.compile(r"((jpe?g|png|rgb|input|source|left|right)[-_ ]?)?(image|img)s?([-_ ]?\d*(bit)?)")
MAPS = re.compile(
    r"(masks?|labels?|annotations?|annots?|segmentations?|segmaps?|depths?|lines|edges|ground[-_ ]?truths?|gt|trimaps?)"
)
# What `sample` writes beside the samples, in its folder: sheets, conditions, animations.
SHEETS = re.compile(r"samples\.png|[^/]+/(condition\.png|\d{5}\.gif)")
WORD = re.compile(r"[a-z]+|\d+")
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


def walk_pictures(root: Path) -> tuple[list[Path], LeftOut]:
    """As `walk`, for pictures; of a folder that `sample` has written, the samples alone are taken."""
    files, left_out = walk(root)
    if os.path.exists(root / "samples.json"):
        beside = {file for file in files if SHEETS.fullmatch(file.relative_to(root).as_posix())}
        left_out["picture(s) beside the samples"].update(file.name for file in beside)
        files = [file for file in files if file not in beside]
    return files, left_out


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


def part_of(name: str) -> tuple[str, str] | None:
    """('train', 'validation' or 'test', what else the name says), if a folder's name has a usual word for just one.

    'images_Train2017' is ('train', ''), 'trainA' is ('train', 'a').
    """
    words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    found = [(part, usual.search(words)) for part, usual in PARTS.items() if usual.search(words)]
    if len(found) != 1:
        return None
    ((part, match),) = found
    others = WORD.findall(words[: match.start()] + " " + words[match.end() :])
    return part, "".join(word for word in others if not IMAGES.fullmatch(word) and word not in ("set", "split", "data"))


def group_parts(names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Folders with names of splits, sorted, by what else they say, and by the part: 'train' or 'validation'.

    Those for testing count where nothing else of theirs is there to validate on.
    """
    groups = defaultdict(lambda: {part: [] for part in PARTS})
    for name in sorted(names):
        if (found := part_of(name)) is not None:
            groups[found[1]][found[0]].append(name)
    return {
        rest: {"train": parts["train"], "validation": parts["validation"] or parts["test"]}
        for rest, parts in groups.items()
    }


def folders_within(root: Path, files: Iterable[Path]) -> dict[tuple[str, ...], set[str]]:
    """The names of the folders that hold files, at any depth, by the path of the folder that they lie in."""
    within = defaultdict(set)
    for folder in {file.parent for file in files}:
        parts = folder.relative_to(root).parts
        for depth, name in enumerate(parts):
            within[parts[:depth]].add(name)
    return within


def name_splits(root: Path, data: ConfigDict) -> dict[Path, str]:
    """The folders that `data.splits` names, those that are there, with their parts of the data; raises UserError."""
    for part, name in data.splits.items():
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise UserError(f"data.splits.{part}={show(name)}: it is the name of a folder below data.path")
    named = {root / data.splits[part]: part for part in ("train", "validation")}
    return {folder: part for folder, part in named.items() if os.path.isdir(folder)}


def find_images(root: Path, files: list[Path], data: ConfigDict, documented: Iterable[str]) -> Path:
    """The folder of the images where they are read alone: images/ if the features of `documented` lie beside it.

    Otherwise it is the root. Raises UserError where maps of another layout would be taken for images.
    """
    named, known = name_splits(root, data), set(data.class_names)
    if len(named) == 2:
        files = [file for file in files if not named.keys().isdisjoint(file.parents)]
    within = folders_within(root, files)
    top, beside = within[()], {name for name in documented if os.path.isdir(root / name)}
    if len(named) < 2 and "images" in top and beside and top <= {"images", *beside} and not top & known:
        return root / "images"
    for parts, names in sorted(within.items()):
        pictures = [name for name in sorted(names) if IMAGES.fullmatch(name.lower())]
        maps = [name for name in sorted(names) if MAPS.search(name.lower())]
        if pictures and maps and not (names | top) & known:
            folder = root.joinpath(*parts)
            raise UserError(
                f"data.path={data.path}: {printable(str(folder))} holds {listed(f'{name}/' for name in pictures)} and"
                f" {listed(f'{name}/' for name in maps)}: are the latter maps of the former? Set data.path (data_path)"
                f" to {printable(str(folder / pictures[0]))} for what is in it alone, move the maps away, or set"
                " data.class_names to all names if they are classes"
            )
    return root


def find_splits(root: Path, files: list[Path], data: ConfigDict, beside: bool) -> dict[Path, str]:
    """Folders with their parts of the data, 'train' or 'validation'; {} where the images are not in such folders.

    They are those that `data.splits` names; or two with usual names; or such pairs in each of the folders that hold
    images. beside: whether other features lie beside the images, in folders of the same names. Classes of the run are
    never splits. Raises UserError if it cannot be told.
    """
    there = name_splits(root, data)
    if len(there) == 2:
        return there
    if there and data.splits.train == data.splits.validation:
        raise UserError(f"data.splits.train and data.splits.validation are both {show(data.splits.train)}")
    within = folders_within(root, files)
    top = within[()]
    groups = group_parts(top)
    plain = groups.get("", {"train": [], "validation": []})
    if there and beside:
        ((folder, part),) = there.items()
        lacking = "validation" if part == "train" else "train"
        perhaps = [f"; data.splits.{lacking}={printable(name)}, perhaps" for name in plain[lacking]]
        raise UserError(
            f"{folder} is there, {root / data.splits[lacking]} is not: name both by data.splits, or have neither"
            + "".join(perhaps[:1])
        )
    found = {name for parts in groups.values() for names in parts.values() for name in names}
    usual = {name for names in plain.values() for name in names}
    classes = () if "objects" in data.features else data.class_names  # of folders; a scene may hold a 'train'
    if found & set(classes):
        return {}
    paired = [parts for parts in groups.values() if parts["train"] and parts["validation"]]
    if [[len(names) for names in parts.values()] for parts in paired] == [[1, 1]]:
        return {root / names[0]: part for part, names in paired[0].items()}
    if deeper := find_deeper(root, data, within, bool(top & set(classes))):
        return deeper
    both = [any(parts[part] for parts in groups.values()) for part in ("train", "validation")]
    alone = usual == top and any(len(within[name,]) > 1 for name in top)
    if paired or alone or (there and len(usual) > 1) or (found == top and all(both)) or same_inside(usual, within):
        raise not_told(root, data, sorted(found), top)
    return {}


def same_inside(usual: set[str], within: dict[tuple[str, ...], set[str]]) -> bool:
    """Whether a folder with a usual name of a split holds the same folders as those beside it: classes, most likely."""
    top = within[()]
    least = 1 if len(top) == 2 else 2  # of many, one may be a class of its own, such as trains
    return any(
        len(top) > 1 and all(len(within[name,] & within[other,]) >= least for other in top - {name}) for name in usual
    )


def find_deeper(root: Path, data: ConfigDict, within: dict[tuple[str, ...], set[str]], known: bool) -> dict[Path, str]:
    """As `find_splits`, for pairs below folders: <folder>/{train,val}/, <class>/{train,val}/.

    known: whether the folders in the root are classes of the run.
    """
    pairs = {}
    for parts, names in within.items():
        found = [group for group in group_parts(names).values() if group["train"] and group["validation"]]
        if parts and found:
            pairs[parts] = found
    clear = all([len(names) for group in found for names in group.values()] == [1, 1] for found in pairs.values())
    # Nothing lies elsewhere but in the folders that lead there.
    above = {parts[:depth] for parts in pairs for depth in range(len(parts))}
    outside = any(
        not any(parts[:depth] in pairs for depth in range(1, len(parts) + 1)) and parts not in above
        for parts in {(*parts, name) for parts, names in within.items() for name in names}
    )
    told = clear and not outside and len(set(map(len, pairs))) == 1
    if not pairs or (known and (len(pairs) == 1 or not told)):
        return {}
    if not told:
        names = ["/".join((*parts, name)) for parts, found in sorted(pairs.items()) for group in found
                 for names in group.values() for name in names]  # fmt: skip
        raise not_told(root, data, names, within[()])
    return {root.joinpath(*parts, names[0]): part for parts, found in pairs.items() for part, names in found[0].items()}


def not_told(root: Path, data: ConfigDict, names: list[str], top: set[str]) -> UserError:
    """The error that asks which folders are splits; names: of those that may be."""
    return UserError(
        f"data.path={data.path}: {listed(f'{name}/' for name in names)}: which images are trained on, and which are"
        f" held out? Set data.splits.train and data.splits.validation to two folders, or data.path (data_path) to"
        f" {printable(str(root / names[0]))} for all that is in it"
        + (f", or data.class_names to all names if {listed(sorted(top), 3)} are classes" if len(top) > 1 else "")
    )
