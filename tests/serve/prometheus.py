"""Reads Prometheus' text format strictly."""

import re
from dataclasses import dataclass

_META = re.compile(r"# (HELP|TYPE) (\w+) (.+)")
SAMPLE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SUFFIXES = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Series:
    """One series: its name, its labels in order, its value."""

    name: str
    labels: dict[str, str]
    value: float

    @property
    def key(self):
        """What makes it the same series in another scrape."""
        return self.name, *sorted(self.labels.items())


@dataclass(frozen=True)
class Scrape:
    """The types by metric, and all series."""

    types: dict[str, str]
    series: list[Series]

    def __getitem__(self, name):
        return [each for each in self.series if each.name == name]

    def values(self, name, **labels):
        """The values of the series of this name that have these labels."""
        return [each.value for each in self[name] if labels.items() <= each.labels.items()]

    @property
    def counters(self):
        """The values that may never fall, by series."""
        return {each.key: each.value for each in self.series if self.types[self.metric(each.name)] != "gauge"}

    def metric(self, name):
        """The metric that a series of this name belongs to."""
        if name in self.types:
            return name
        [base] = [name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)]
        assert self.types[base] == "histogram", name
        return base


def parse(text):
    """The scrape. Asserts that each metric comes in one piece, after its help and type, and that no series is twice."""
    types, series, last = {}, [], None
    for line in text.splitlines():
        if meta := _META.fullmatch(line):
            if meta[1] == "TYPE":
                assert meta[2] not in types, line
                types[meta[2]] = meta[3]
            last = meta[2]
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample and sample[1].startswith(last), line
        series.append(Series(sample[1], dict(LABEL.findall(sample[2])), float(sample[3])))
    scrape = Scrape(types, series)
    assert len({each.key for each in series}) == len(series)
    assert {scrape.metric(each.name) for each in series} <= set(types)
    return scrape
