"""The chunk scheduler without Dask: every partition ends exactly once, within the limits, even if workers die."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ducklake_flows.orchestration.chunks import CHUNK, IN_FLIGHT, Chunk, ChunkScheduler, cut, priority
from ducklake_flows.plan import Planned
from ducklake_flows.states import Order, State

if TYPE_CHECKING:
    from random import Random


def planned(**partitions: int) -> list[Planned]:
    return [
        Planned(d, f"{n:04}", State.missing, True, "", None) for d, count in partitions.items() for n in range(count)
    ]


@pytest.mark.parametrize(
    ("partitions", "slots", "sizes"), [(365, 2, {92, 89}), (4, 2, {2}), (1, 4, {1}), (900, 4, {75}), (0, 2, set())]
)
def test_chunks_hold_every_partition_once_and_are_bounded(partitions: int, slots: int, sizes: set[int]) -> None:
    todo = planned(a=partitions)
    chunks = cut(todo, slots)
    assert [key for chunk in chunks for key in chunk.versions] == [p.partition for p in todo]
    assert {len(chunk.versions) for chunk in chunks} == sizes


def test_a_chunk_belongs_to_one_dataset() -> None:
    chunks = cut(planned(a=3, b=2), 1)
    assert [(c.dataset, len(c.versions)) for c in chunks] == [("a", 3), ("b", 2)]


def test_datasets_take_turns_in_the_order_of_their_partitions() -> None:
    def day(dataset: str, key: str) -> Planned:
        return Planned(dataset, key, State.missing, True, "", None)

    todo = [day("a", "05"), day("b", "05"), day("a", "04"), day("b", "04"), day("a", "03"), day("a", "02")]
    found = [(c.dataset, *c.versions) for c in cut(todo, 3)]
    assert found == [("a", "05", "04"), ("b", "05", "04"), ("a", "03", "02")]


def test_urgent_runs_come_first_then_newer_partitions_then_those_of_an_old_first_backfill() -> None:
    today, old = datetime(2024, 5, 2), datetime(1970, 1, 1)
    ranked = [
        priority(today, Order.newest, urgent=True),
        priority(old, Order.newest, urgent=True),
        priority(today, Order.oldest, urgent=True),
        priority(datetime.max, Order.newest, urgent=False),
        priority(today, Order.newest, urgent=False),
        priority(old, Order.newest, urgent=False),
        priority(datetime.min, Order.newest, urgent=False),  # grain full
        priority(old, Order.oldest, urgent=False),
        priority(today, Order.oldest, urgent=False),
    ]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(ranked)) == len(ranked)


def test_the_chunks_in_flight_are_bounded_and_the_bound_grows_with_the_cluster() -> None:
    scheduler = ChunkScheduler([Chunk("a", {str(n): ""}) for n in range(100)], 2)
    first = scheduler.ready()
    assert [list(c.versions) for c in first] == [[str(n)] for n in range(2 * IN_FLIGHT)]
    scheduler.grown(1)
    assert scheduler.ready() == []
    scheduler.grown(3)
    assert len(scheduler.ready()) == IN_FLIGHT
    scheduler.finished(first[0], 1)
    assert [list(c.versions) for c in scheduler.ready()] == [[str(3 * IN_FLIGHT)]]


def test_a_rate_limited_dataset_has_at_most_one_chunk_in_flight_per_slot() -> None:
    chunks = [Chunk("slow", {str(n): ""}) for n in range(5)] + [Chunk("free", {str(n): ""}) for n in range(4)]
    scheduler = ChunkScheduler(chunks, 2)
    first = scheduler.ready({"slow": 2})
    assert Counter(c.dataset for c in first) == {"slow": 2, "free": 4}
    assert scheduler.ready({"slow": 2}) == []
    assert scheduler.in_flight == {"slow": 2, "free": 4}
    scheduler.finished(first[0], 1)
    assert scheduler.ready({"slow": 1}) == []
    assert [c.versions for c in scheduler.ready({"slow": 2})] == [{"2": ""}]


def test_unstarted_partitions_come_next_in_even_chunks_no_larger_than_the_number_started() -> None:
    chunks = [Chunk("a", {str(n): "" for n in range(10)}), *(Chunk("a", {f"1{n}": ""}) for n in range(5))]
    scheduler = ChunkScheduler(chunks, 1)
    assert scheduler.ready() == chunks[:IN_FLIGHT]
    scheduler.finished(chunks[0], 3)
    for chunk in chunks[1:IN_FLIGHT]:
        scheduler.finished(chunk, 1)
    assert [list(c.versions) for c in scheduler.ready()] == [["3", "4", "5"], ["6", "7", "8"], ["9"]]


def test_a_partition_lost_while_it_runs_alone_fails() -> None:
    chunk, other = Chunk("a", {"1": "", "2": ""}), Chunk("b", {"1": ""})
    scheduler = ChunkScheduler([chunk, other], 2)
    scheduler.ready()
    assert scheduler.lost(chunk, retry=True) == []
    assert scheduler.ready() == []  # the other chunk is in flight and might cause the next loss
    scheduler.finished(other, 1)
    (alone,) = scheduler.ready()
    assert alone.alone
    assert scheduler.lost(alone, retry=True) == list(alone.versions)


def test_a_chunk_lost_without_retry_fails_at_once() -> None:
    chunk = Chunk("a", {"1": "", "2": ""})
    scheduler = ChunkScheduler([chunk], 1)
    scheduler.ready()
    assert scheduler.lost(chunk, retry=False) == ["1", "2"]
    assert not scheduler.unfinished


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 250), min_size=1),
    st.integers(1, 5),
    st.sets(st.sampled_from("abc")),
    st.randoms(use_true_random=False),
)
def test_every_partition_ends_exactly_once_even_if_chunks_are_lost(
    counts: dict[str, int], slots: int, limited: set[str], random: Random
) -> None:
    """Chunks end in any order, end early or are lost. A few partitions kill their worker every time."""
    todo = planned(**counts)
    deadly = {(p.dataset, p.partition) for p in todo if random.random() < 0.02}
    scheduler = ChunkScheduler(cut(todo, slots), slots)
    in_flight: list[Chunk] = []
    ended: Counter[tuple[str, str]] = Counter()
    failed: set[tuple[str, str]] = set()
    while scheduler.unfinished:
        in_flight += scheduler.ready(dict.fromkeys(limited, slots))
        assert in_flight, "nothing is in flight, and nothing is ready"
        assert len(in_flight) == sum(scheduler.in_flight.values()) <= IN_FLIGHT * slots
        assert all(len(c.versions) <= CHUNK for c in in_flight)
        assert len(in_flight) == 1 or not any(c.alone for c in in_flight)
        for key in limited:
            assert sum(c.dataset == key for c in in_flight) <= slots
        chunk = in_flight.pop(random.randrange(len(in_flight)))
        keys = [(chunk.dataset, key) for key in chunk.versions]
        if deadly & set(keys) or random.random() < 0.1:
            lost = [(chunk.dataset, key) for key in scheduler.lost(chunk, retry=True)]
            failed |= set(lost)
            ended.update(lost)
        else:
            started = random.randint(1, len(keys))
            scheduler.finished(chunk, started)
            ended.update(keys[:started])
    assert ended == Counter((p.dataset, p.partition) for p in todo)
    assert failed >= deadly
