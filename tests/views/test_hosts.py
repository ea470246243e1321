"""The pictures of three hosts show what the configuration, the calls, the logs and the record say, and say it in words too."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from cipherdm import CipherDMError
from cipherdm.files import root
from cipherdm.hosts import Certificates
from cipherdm.hosts.config import CallerConfig, HostConfig, Limits, RoleNames, Timeouts
from cipherdm.hosts.inspection import METHODS, table_of_roles
from cipherdm.records import read_record
from cipherdm.views.hosts import event_table, permissions, runs_of, timeline, who_is_where
from cipherdm.views.style import PALETTE, png
from cipherdm_experiments.soak import endurance

ROLES = RoleNames(("owner",), ("alice", "bob"), ("operator",))


@pytest.fixture
def host():
    files = Certificates(Path("a.pem"), Path("a.key"), Path("authority.pem"))
    caller = CallerConfig(("a.org:9300", "b.org:9301", "c.org:9302"), Timeouts(), files)
    links = ("a.org:9303", "b.org:9305", "c.org:9307")
    return HostConfig(caller, 0, links, files, None, "0.0.0.0", Path("state"), 1, Limits(runs=2), ROLES)


def line(second: float, party: int, event: str, **about) -> str:
    return json.dumps({"time": f"2026-01-01T00:00:{second:06.3f}+00:00", "party": party, "event": event, **about})


def run(name: str, caller: str = "alice") -> dict[str, str]:
    return {"run": name, "caller": caller, "model": "digits"}


@pytest.fixture
def logs():
    """Run "a" is done at all three. In run "b" party 1 is killed, and comes back; parties 0 and 2 see it fail."""
    lines = {
        rank: [
            line(1, rank, "ready", pid=1),
            line(2, rank, "run asked for", **run("a")),
            line(4 + rank / 10, rank, "run done", seconds=2.0, **run("a")),
            line(5, rank, "run asked for", **run("b", "bob")),
        ]
        for rank in range(3)
    }
    for rank in (0, 2):
        lines[rank].append(line(6, rank, "run failed", reason="party 1 is gone", **run("b", "bob")))
    lines[1] += ['{"time": "2026-01-01T00', line(9, 1, "ready", pid=2)]
    return ["\n".join(lines[rank]) + "\n" for rank in range(3)]


def assert_readable(figure):
    assert Image.open(io.BytesIO(png(figure))).size[0] > 400
    assert len(figure.get_label()) > 60


def test_every_caller_has_a_line_to_every_host_and_hosts_are_linked(host):
    figure = who_is_where(host)
    assert_readable(figure)
    lines = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    of_colour = {
        colour: [one for one in lines if to_hex(one.get_edgecolor()).upper() == colour] for colour in PALETTE[:2]
    }
    # Three callers to three parties, and party 0 to two; and one link for each two parties.
    assert [len(found) for found in of_colour.values()] == [3 * 3 + 2, 3]
    assert sum(one.get_linestyle() == "--" for one in lines) == 2
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "calls at b.org:9301\nlinks at 9305 to 9306" in texts
    assert "party 2, called at c.org:9302, links at 9307 to 9308" in figure.get_label()


def test_permissions_mark_each_call_once_and_ring_what_should_not_be():
    names = ("owner", "alice", "stranger")
    allowed = table_of_roles(names, ROLES)
    tried = allowed.map({True: "INVALID_ARGUMENT", False: "PERMISSION_DENIED"}.get)
    figure = permissions(tried, allowed)
    assert_readable(figure)
    marks = {marks.get_label(): len(marks.get_offsets()) for marks in figure.axes[0].collections}
    # An owner may describe, register, publish and remove; a client describe and request; a stranger nothing.
    assert marks == {"let through": 6, "permission denied": 3 * 8 - 6}
    assert "stranger: none" in figure.get_label() and "alice: Describe, Request" in figure.get_label()

    tried.loc["stranger", "Status"] = "OK"
    tried.loc["owner", "Describe"] = "UNAVAILABLE"
    spoilt = permissions(tried, allowed)
    marks = {marks.get_label(): marks.get_offsets().tolist() for marks in spoilt.axes[0].collections}
    places = {method: float(index) for index, method in enumerate(METHODS)}
    assert marks["not what the table says"] == [[places["Describe"], 0.0], [places["Status"], 2.0]]
    assert marks["not even connected"] == [[places["Describe"], 0.0]]
    assert "2 ended otherwise than the table says" in spoilt.get_label()


def test_events_are_in_order_of_time_and_half_a_line_is_not_lost(logs):
    events = event_table(logs)
    assert len(events) == sum(len(log.splitlines()) for log in logs)
    assert events["time"].is_monotonic_increasing
    assert list(events["event"]).count("not readable") == 1
    assert event_table(["", "", ""]).empty
    with pytest.raises(CipherDMError, match="no events to draw"):
        timeline(event_table(["", "", ""]))


def test_a_run_ends_where_the_log_says_or_where_the_party_is_back(logs):
    runs = runs_of(event_table(logs)).set_index(["run", "party"])
    assert runs["outcome"].to_dict() == {
        **{("a", rank): "done" for rank in range(3)},
        ("b", 0): "failed",
        ("b", 1): "no word",
        ("b", 2): "failed",
    }
    np.testing.assert_allclose(runs.loc["a", "end"], [3, 3.1, 3.2])  # since the first event, at second 1
    assert runs.loc[("b", 1), "begin"] == 4 and runs.loc[("b", 1), "end"] == 8
    assert runs.loc[("b", 0), "end"] == 5


def test_the_timeline_has_a_bar_for_each_run_at_each_party(logs):
    figure = timeline(event_table(logs))
    assert_readable(figure)
    (axis,) = figure.axes
    bars = sorted((bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in axis.patches)
    assert len(bars) == 6 and [round(centre) for centre, *_ in bars] == [0, 0, 1, 1, 2, 2]
    assert max(width for _, _, width in bars) == pytest.approx(4)
    assert [bool(bar.get_hatch()) for bar in axis.patches].count(True) == 2
    assert "party 1: 1 done; party 1: 1 no word" in figure.get_label()


def test_runs_at_one_time_are_drawn_beside_each_other():
    asked = [line(second, 0, "run asked for", **run(name)) for second, name in ((0, "a"), (1, "b"), (3, "c"))]
    done = [line(second, 0, "run done", **run(name)) for second, name in ((2, "a"), (4, "b"), (5, "c"))]
    bars = timeline(event_table(["\n".join(asked + done), "", ""])).axes[0].patches
    a, b, c = ((bar.get_y(), bar.get_y() + bar.get_height()) for bar in bars)
    assert a[1] <= b[0] and c == a  # the third begins after the first has ended


def test_a_soak_is_shown_whole():
    record = read_record(root() / "data" / "measurements" / "soak.json")
    figure = endurance(record)
    assert_readable(figure)
    times, memory = figure.axes
    np.testing.assert_allclose(times.collections[0].get_offsets()[:, 1], record["request_seconds"])
    for drawn, held in zip(memory.lines, np.transpose(record["memory_bytes"]), strict=True):
        np.testing.assert_allclose(drawn.get_ydata(), held / 2**20)
        assert drawn.get_xdata()[-1] == record["requests"]
    assert f"{max(record['request_seconds']):.3g} for the slowest" in figure.get_label()
