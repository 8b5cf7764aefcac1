"""The raw records as a table that a page can carry: all of them, or the spikes and what is evenly spaced between."""

from __future__ import annotations

import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter

import numpy

from probes.run import Record, Run
from reports.document import Records
from reports.render.readings import thinned

MOST = 30_000
"""About half a megabyte in a page."""

SPANS = (3000, 1000, 300, 100, 30, 10, 3, 1)
"""Into how many a quantity's records are cut, if there are too many: the lowest and the highest of each are kept."""

COLUMNS = tuple(field.name for field in fields(Record))


def raw(run: Run) -> Records | None:
    """What a reader needs to compute with the values; None for a run without any."""
    if not run.records:
        return None
    kept = run.records if len(run.records) <= MOST else _some(run)
    return Records(_packed(kept), len(kept), len(run.records), None if run.path is None else str(run.path))


def _some(run: Run) -> Sequence[Record]:
    groups = defaultdict[tuple[str, str, str | None], list[int]](list)
    for place, record in enumerate(run.records):
        groups[record.probe, record.name, record.layer].append(place)
    places: list[int] = []
    for spans in SPANS:
        if sum(min(len(group), 2 * spans + 2) for group in groups.values()) <= MOST or spans == SPANS[-1]:
            places = sorted(place for group in groups.values() for place in _spikes(run.records, group, spans))
            break
    return [run.records[place] for place in places[-MOST:]]


def _spikes(records: Sequence[Record], places: Sequence[int], spans: int) -> list[int]:
    values = numpy.array([numpy.nan if records[place].value is None else records[place].value for place in places])
    chosen, _ = thinned(numpy.array(places), values, spans)
    return [int(place) for place in chosen]


def _packed(records: Sequence[Record]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(attrgetter(*COLUMNS), records))
    # Without a time in it, the same records are the same bytes.
    return gzip.compress(text.getvalue().encode("utf-8", "replace"), mtime=0)
