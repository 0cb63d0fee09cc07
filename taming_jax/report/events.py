"""Event files of TensorBoard, as `writer` leaves them: where their pictures and histograms lie.

A file is a row of records: the length of the content (uint64), its masked CRC-32C (uint32), the content, which is an
`Event`, and the content's CRC. The first sum shows where a file is damaged; the second one is passed over.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

LONGEST = 1 << 28  # bytes of a record; a longer one is passed over


class Place(NamedTuple):
    """Where an event lies."""

    file: Path
    start: int
    length: int


class Events(NamedTuple):
    """What the event files of a run hold.

    pictures, histograms: by name and step. times: seconds since 1970 of the first event and of the last, or none.
    files: all of them; damaged: those of which a part is none, or cannot be read.
    """

    pictures: dict[str, dict[int, Place]]
    histograms: dict[str, dict[int, Place]]
    times: list[float]
    files: list[Path]
    damaged: list[Path]


def scan(folder: Path) -> Events:
    """Reads the event files in a folder, in the order in which they were begun; only places are kept.

    Where a run went on from a step, what it had written after that counts no more, as in TensorBoard.
    """
    found = Events({}, {}, [], sorted(folder.glob("events.out.tfevents.*")), [])
    for file in found.files:
        try:
            for place, event in read_file(file, found.damaged):
                add(found, place, event)
        except OSError:  # nobody may read it, or the disk cannot
            found.damaged.append(file)
    return found


def add(found: Events, place: Place, event: Event) -> None:
    """Adds an event to what was found before it."""
    found.times[1:] = [event.wall_time]
    if event.session_log.status == SessionLog.START:
        for places in (*found.pictures.values(), *found.histograms.values()):
            for step in [step for step in places if step >= event.step]:
                del places[step]
    for value in event.summary.value:
        kind = {"image": found.pictures, "histo": found.histograms}.get(value.WhichOneof("value"))
        if kind is not None:
            kind.setdefault(value.tag, {})[event.step] = place


def read_file(file: Path, damaged: list[Path]) -> Iterator[tuple[Place, Event]]:
    """The events of a file, to its end or to where it is damaged, which is added to `damaged`.

    A last event that is not complete is no damage: the run may be writing it.
    """
    with open(file, "rb") as stream:
        end = stream.seek(0, 2)
        start = 0
        while start + 12 <= end:
            stream.seek(start)
            header = stream.read(12)
            length, masked = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != masked:
                damaged.append(file)
                return
            place = Place(file, start + 12, length)
            start += length + 16
            if length <= LONGEST and start <= end:
                try:
                    yield place, Event.FromString(stream.read(length))
                except DecodeError:
                    damaged.append(file)


def read(place: Place, name: str) -> Summary.Value | None:
    """What an event holds under a name; None where it has gone, as of a run that begins anew."""
    try:
        with open(place.file, "rb") as stream:
            stream.seek(place.start)
            event = Event.FromString(stream.read(place.length))
    except (OSError, DecodeError):
        return None
    return next((value for value in event.summary.value if value.tag == name), None)
