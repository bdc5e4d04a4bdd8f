"""Reads TensorBoard's event files back, as TensorFlow defines them: for tests of the writer."""

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from blip3o import storage


def records(data):
    """The records of a file; both checksums of each must be right."""
    while data:
        length, rest = int.from_bytes(data[:8], "little"), data[12:]
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        record, checksum, data = rest[:length], rest[length : length + 4], rest[length + 4 :]
        assert int.from_bytes(checksum, "little") == masked_crc32c(record)
        yield record


def read_events(folder):
    """All events below a folder, files in the order of their names, without the first of each, its version."""
    for file in storage.list_files(folder):
        first, *events = map(Event.FromString, records(storage.read_bytes(file.uri)))
        assert first.file_version == "brain.Event:2"
        assert "tfevents" in file.uri
        yield from events


def read_scalars(folder):
    """(step, tag, value) of every scalar, in the order in which they are read."""
    for event in read_events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, value.simple_value
