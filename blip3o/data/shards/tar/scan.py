"""One tar → its samples and its damage, with every member accounted for."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.sample import Stored, choose_members, is_like_caption, is_like_picture
from blip3o.data.shards.scan_result import LostInputs, ScanOptions, ScanResult, sample_facts, span
from blip3o.data.shards.tar.index import Read, TarItem, TarSample, group_samples, scan_tar
from blip3o.errors import quoted
from blip3o.storage.system_files import is_system_file
from blip3o.types import Member

DUPLICATE = "duplicate key"
SHOWN = 6  # unused members of a key that its entry names


def scan_tar_shard(read: Read, size: int, options: ScanOptions) -> ScanResult:
    """Scans a tar of `size` bytes. Raises as `read` does; damage is part of the result."""
    found = ScanResult(unit="members")
    samples: list[TarSample] = []
    for item in group_samples(_without_system_files(scan_tar(read, size), found), options.key):
        if isinstance(item, TarItem):
            found.lost.append(LostInputs(offset=item.offset, size=item.size, reason=_why_lost(item)))
            continue
        try:
            if item.damage:
                raise DamagedSampleError(item.damage)
            found.facts[len(samples)] = sample_facts(_stored(item, read, options), options.limits)
        except DamagedSampleError as damage:
            found.reasons[len(samples)] = damage.reason
        samples.append(item)
    found.keys = [sample.key for sample in samples]
    found.members = [tuple(sample.members) for sample in samples]
    for row, reason in [*_repeated(samples), *_incomplete(samples, found.reasons)]:
        found.reasons[row] = reason
        found.facts.pop(row, None)
    for row, sample in enumerate(samples):
        _account(row, sample, options, found)
    _list_skipped_if_all(found)
    return found


def _without_system_files(items: Iterable[TarItem], found: ScanResult) -> Iterator[TarItem]:
    for item in items:
        found.inputs += 1
        if is_system_file(item.name) and not item.torn:
            found.skipped += 1
            found.first_skipped = found.first_skipped or item.name
        else:
            yield item


def _why_lost(item: TarItem) -> str:
    """What is wrong with an item that has no key."""
    if item.damage:
        return item.damage
    return f"unused members: {f'{quoted(item.name)} has no extension' if item.name else 'one has no name'}"


def _stored(sample: TarSample, read: Read, options: ScanOptions) -> Stored:
    chosen = choose_members(sample.members, options.members)
    for member in chosen.all():
        if member.ext in sample.faults:
            raise DamagedSampleError(sample.faults[member.ext])
    image, caption, record = (
        None if member is None else read(member.offset, member.size)
        for member in (chosen.image, chosen.caption, chosen.record)
    )
    return Stored(image=image or b"", caption=caption, record=record)


def _account(row: int, sample: TarSample, options: ScanOptions, found: ScanResult) -> None:
    """Counts the members of a sample as used, bad together with it, or unused."""
    pictures = 0 if options.members.image else sum(is_like_picture(member.ext) for member in sample.members)
    captions = 0 if options.members.caption else sum(is_like_caption(member.ext) for member in sample.members)
    found.samples += 1
    found.further += max(pictures - 1, 0)
    found.captions += captions
    if row in found.reasons:
        found.weights[row] = len(sample.members)
        return
    used = choose_members(sample.members, options.members).all()
    found.used += len(used)
    unused = [member for member in sample.members if member not in used]
    if unused:
        offset, size = span(unused)
        found.lost.append(LostInputs(offset=offset, size=size, reason=_unused(sample.key, unused), count=len(unused)))
    if captions:
        found.spare_captions += sum(is_like_caption(member.ext) for member in unused)


def _unused(key: str, members: Sequence[Member]) -> str:
    names = [quoted(member.ext)[1:-1] for member in members[:SHOWN]] + ["…"] * (len(members) > SHOWN)
    return f"unused members: key {quoted(key)} also has {', '.join(names)}, which no sample uses"


def _list_skipped_if_all(found: ScanResult) -> None:
    """Lists the skipped files of an archive with nothing else: it may be a data set in a hidden folder."""
    if found.skipped and not found.keys:
        what = f"all of {found.skipped} are hidden or system files, as {quoted(found.first_skipped)}"
        reason = f"unused members: {what}: write them to a tar without the hidden folder"
        found.lost.append(LostInputs(offset=0, size=0, reason=reason, count=found.skipped))
        found.skipped = 0


def _repeated(samples: Sequence[TarSample]) -> Iterator[tuple[int, str]]:
    """Rows whose key came before. A second whole sample costs itself; members that are apart cost both parts."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        rows[sample.key].append(row)
    for key, (first, *others) in rows.items():
        seen = {member.ext for member in samples[first].members}
        for row in others:
            if seen & {member.ext for member in samples[row].members}:
                yield row, DUPLICATE
            else:
                reason = f"members of key {quoted(key)} lie apart in the tar: write them one after another"
                yield from ((first, reason), (row, reason))


def _incomplete(samples: Sequence[TarSample], reasons: dict[int, str]) -> list[tuple[int, str]]:
    """Samples next to damage of the archive without a member that most of the shard's samples have."""
    usual = Counter(frozenset(m.ext for m in s.members) for row, s in enumerate(samples) if row not in reasons)
    if not usual:
        return []
    expected = usual.most_common(1)[0][0]
    return [
        (row, sample.torn_by)
        for row, sample in enumerate(samples)
        if sample.torn_by and row not in reasons and not expected <= {member.ext for member in sample.members}
    ]
