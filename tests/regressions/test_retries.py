"""Sources that fail for a while or hang: the partition is read again or fails in time; its neighbours are published."""

from __future__ import annotations

import errno
import http.client
import os
import queue
import socket
import sqlite3
import sys
import threading
import time
import urllib.error
from collections import Counter
from datetime import date
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import requests

from ducklake_flows.datasets.dataset import Dataset
from ducklake_flows.errors import NoSource, Rejected, SourceError, SourceTimeout, SourceUnavailable, StorageError
from ducklake_flows.extract import chunk
from ducklake_flows.extract.chunk import Stopped, extract
from ducklake_flows.orchestration.server import until
from ducklake_flows.sources.transient import is_transient
from ducklake_flows.sources.values import Unfit
from ducklake_flows.staging.receipt import Failure, Outcome, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ducklake_flows.datasets.partitions import Partition
    from tests.conftest import Lake

pytestmark = pytest.mark.short("sqlite+folder")

DAYS = {f"2024-01-{n:02}": "" for n in range(1, 5)}


def dataset(source: Callable[[Partition], Any], **options: Any) -> Dataset:
    given = {"retry_delay": 0, **options}
    return Dataset("readings", source, partition_column="day", start=date(2024, 1, 1), **given)


def by_day(outcomes: list[Outcome]) -> dict[int, Outcome]:
    return {int(o.partition[-2:]): o for o in outcomes}


def errors(outcomes: list[Outcome]) -> dict[int, str]:
    return {day: o.error for day, o in by_day(outcomes).items() if isinstance(o, Failure)}


@pytest.fixture
def server() -> Iterator[str]:
    """Answers 503 twice for each path, then the path's number; 404 for /gone."""
    asked = Counter[str]()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            status = 404 if self.path == "/gone" else 503 if asked[self.path] <= 2 else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(str(asked[self.path]).encode())

        def log_message(self, *_: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


def test_a_source_that_answers_503_twice_is_read_a_third_time_and_its_neighbours_only_once(
    lake: Lake, server: str
) -> None:
    order: list[str] = []

    def source(partition: Partition) -> Iterator[dict[str, Any]]:
        order.append(partition.key[-1])
        yield {"tries": 0}  # rows of a failed try are discarded
        if partition.key[-1] == "2":
            answer = requests.get(f"{server}/2", timeout=10)
            answer.raise_for_status()
            yield {"tries": int(answer.text)}
        if partition.key[-1] == "3":
            requests.get(f"{server}/gone", timeout=10).raise_for_status()

    outcomes = extract(dataset(source), DAYS, lake.settings)
    assert order == ["1", "2", "3", "4", "2", "2"], "the others are read first"
    assert errors(outcomes) == {3: f"HTTPError: 404 Client Error: Not Found for url: {server}/gone"}
    lake.publish(outcomes)
    found = lake.sql(
        "SELECT day(day) AS day, list(tries ORDER BY tries) AS tries FROM raw.readings GROUP BY 1 ORDER BY 1"
    )
    assert [(row["day"], row["tries"]) for row in found] == [(1, [0]), (2, [0, 3]), (4, [0])]
    assert lake.errors() == []
    # A single partition is run again as a whole.
    order.clear()
    (only,) = extract(dataset(source), {"2024-01-02": ""}, lake.settings)
    assert isinstance(only, Receipt)
    assert order == ["2"]


def test_the_last_error_names_the_number_of_tries(lake: Lake) -> None:
    def source(partition: Partition) -> Iterator[dict[str, Any]]:
        if partition.key[-1] in "12":
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
        if partition.key[-1] == "3":
            queue.SimpleQueue[int]().get_nowait()  # the reader's own error for a source that has not answered
        yield {"n": 1}

    assert errors(extract(dataset(source), DAYS, lake.settings)) == {
        **dict.fromkeys((1, 2), "after 3 tries: ConnectionResetError: [Errno 104] reset by peer"),
        3: "Empty: ",
    }
    (only,) = extract(dataset(source, retries=1), {"2024-01-01": ""}, lake.settings)
    assert isinstance(only, Failure)
    assert only.error == "after 2 tries: ConnectionResetError: [Errno 104] reset by peer"
    assert errors(extract(dataset(source, retries=0), DAYS, lake.settings))[1].startswith("ConnectionResetError")


def test_a_chunk_that_waits_for_a_retry_stops_with_its_run(lake: Lake) -> None:
    read: list[str] = []

    def source(partition: Partition) -> Iterator[dict[str, Any]]:
        read.append(partition.key)
        raise SourceUnavailable("not now")
        yield {}

    with pytest.raises(Stopped):
        extract(dataset(source, retry_delay=60), DAYS, lake.settings, stopped=lambda: len(read) == len(DAYS))
    assert len(read) == len(DAYS)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Coverage off: in Python 3.11, a thread that is traced is not interrupted; see `extract/reader.py`."""
    tracers = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    sys.settrace(tracers[0])
    threading.settrace(tracers[1])


@pytest.mark.usefixtures("untraced")
def test_a_source_that_hangs_fails_in_time_and_its_neighbours_are_published(lake: Lake) -> None:
    """A socket whose server never answers, and a call that sleeps: both block in C."""
    ended: list[str] = []
    release = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def source(partition: Partition) -> Iterator[dict[str, Any]]:
            yield {"n": 1}
            try:
                if partition.key[-1] == "2":
                    with socket.create_connection(silent.getsockname()) as connection:
                        connection.recv(1)
                if partition.key[-1] == "3":
                    while not release.is_set():
                        time.sleep(0.01)
            finally:
                ended.append(partition.key[-1])
            yield {"n": 2}

        outcomes = extract(dataset(source, timeout=2.0), DAYS, lake.settings)
        assert errors(outcomes) == dict.fromkeys((2, 3), "the source gave nothing for 2 s")
        lake.publish(outcomes)
        assert lake.column("SELECT day(day) FROM raw.readings WHERE n = 2 ORDER BY 1") == [1, 4]
        # The thread in Python code ends at once, the one in C with its call.
        assert until(lambda: "3" in ended, 10)
        assert "2" not in ended
        accepted, _ = silent.accept()
        accepted.close()
        assert until(lambda: "2" in ended, 10)
    assert until(lambda: not any(t.name == "lake-source" for t in threading.enumerate()), 10)


@pytest.mark.timeout(60)
def test_a_source_that_hangs_does_not_freeze_a_process_with_a_debugger(lake: Lake, untraced: None) -> None:
    """Python 3.11: with an exception pending for a thread in C, each traced call would run in circles for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def source(partition: Partition) -> Iterator[dict[str, Any]]:
            yield {"n": 1}
            if partition.key[-1] == "2":
                with socket.create_connection(silent.getsockname()) as connection:
                    connection.recv(1)

        sys.settrace(lambda *_: None)
        assert errors(extract(dataset(source, timeout=2.0), DAYS, lake.settings)) == {
            2: "the source gave nothing for 2 s"
        }
        sys.settrace(None)
        silent.accept()[0].close()


def test_a_run_that_ends_stops_a_chunk_whose_source_hangs(lake: Lake) -> None:
    begun, release = threading.Event(), threading.Event()

    def source(partition: Partition) -> Iterator[dict[str, Any]]:
        begun.set()
        release.wait()
        yield {"n": 1}

    with pytest.raises(Stopped):
        extract(dataset(source), DAYS, lake.settings, stopped=begun.is_set)
    release.set()
    assert until(lambda: not any(t.name == "lake-source" for t in threading.enumerate()), 10)


def test_each_partition_is_read_and_closed_in_one_thread(lake: Lake) -> None:
    """SQLite refuses a connection that another thread opened, also to close it."""

    def source(partition: Partition) -> Iterator[dict[str, Any]]:
        con = sqlite3.connect(":memory:")
        try:
            for (number,) in con.execute("SELECT unnest FROM (SELECT 1 AS unnest UNION SELECT 2)"):
                yield {"n": object() if partition.key[-1] == "2" else number}
        finally:
            con.close()

    found = errors(extract(dataset(source), DAYS, lake.settings))
    assert found.keys() == {2}
    assert "object" in found[2]


def test_a_chunk_reads_no_new_partition_after_its_time_but_repeats_those_that_it_began(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = Counter[str]()

    def source(partition: Partition) -> Iterator[dict[str, Any]]:
        tries[partition.key] += 1
        if tries[partition.key] == 1:
            raise SourceUnavailable("not now")
        yield {"n": 1}

    (only,) = extract(dataset(source), DAYS, lake.settings, limit=0)
    assert isinstance(only, Receipt)
    assert tries == {"2024-01-01": 2}
    assert chunk.LONGEST_DELAY <= 60


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


class Database(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate


class OperationalError(Database):
    """As psycopg names it; without an SQLSTATE if there is no connection."""


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        SourceUnavailable("x"),
        ConnectionResetError(),
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        TimeoutError(),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        http.client.IncompleteRead(b""),
        http.client.RemoteDisconnected(""),
        socket.gaierror(socket.EAI_AGAIN, "x"),
        urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "x")),
        urllib.error.HTTPError("", 503, "x", Message(), None),
        requests.ConnectionError(),
        requests.Timeout(),
        *map(answered, (408, 425, 429, 500, 502, 503, 504)),
        *map(Database, ("08006", "40001", "53300", "57P01")),
        OperationalError(None),
        caused(RuntimeError("wrapped"), ConnectionResetError()),
        caused(SourceError("wrapped"), OSError(errno.EIO, "x")),
    ],
    ids=repr,
)
def test_an_error_that_may_pass_is_retried(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        SourceError("wrong header"),
        SourceTimeout("hangs"),
        NoSource("none"),
        Rejected("audit"),
        StorageError("no bucket"),
        Unfit("n", "is text"),
        ValueError("x"),
        KeyError("status"),
        FileNotFoundError(errno.ENOENT, "x"),
        PermissionError(errno.EACCES, "x"),
        OSError(errno.ENOSPC, "x"),
        OSError("Corrupt snappy compressed data"),
        socket.gaierror(socket.EAI_NONAME, "x"),
        *map(answered, (400, 401, 403, 404, 410, 422)),
        *map(Database, ("42P01", "28P01", "22003", "57014")),
        OperationalError("42P01"),
        sqlite3.OperationalError("no such table"),
        caused(Rejected("audit"), ConnectionResetError()),
    ],
    ids=repr,
)
def test_an_error_about_the_data_or_the_code_is_not_retried(error: Exception) -> None:
    assert not is_transient(error)
