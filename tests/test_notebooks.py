"""What a notebook and a prompt show of targets, segments and reports: short and true."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import flowmap

if TYPE_CHECKING:
    from pathlib import Path


def plain(markup: str) -> str:
    """Return the text of some HTML, its parts apart."""
    return " ".join(re.sub("<[^>]*>", " ", markup).split())


def test_target(tmp_path: Path) -> None:
    """What it is, and how far."""
    path = tmp_path / "<b>out.npy"
    target = flowmap.allocate(path, (40, 3), "<f4", segments=4)
    assert repr(target) == f"<flowmap.Target {path} (40, 3) float32, 4 segments>"
    flowmap.fill_segment(target.segments[0], "arange")
    html = target._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;out.npy" in html
    assert "shape (40, 3) dtype float32 size 480 B segments 4: 1 done, 3 pending" in plain(html)
    assert "title='done' style='flex:1;" in html
    assert "title='pending' style='flex:3;" in html
    path.unlink()
    assert "there is no target here" in plain(target._repr_html_())


def test_nothing_in_it(tmp_path: Path) -> None:
    """A target without rows has no segments."""
    target = flowmap.allocate(tmp_path / "out.npy", 0, "<f4")
    assert plain(target._repr_html_()).endswith("size 0 B segments 0")


def test_segment(tmp_path: Path) -> None:
    """Its number and rows."""
    target = flowmap.allocate(tmp_path / "out.npy", 4000, "<f4", segments=[1000, 3000])
    segment = target.segments[1]
    assert repr(segment) == f"<segment 0001 [1000:4000] of {target.path}>"
    told = f"segment 0001 target {target.path} rows 1,000 to 4,000, which are 3,000"
    assert plain(segment._repr_html_()) == told


def test_report(tmp_path: Path) -> None:
    """Whether all is well, and what is not."""
    target = flowmap.allocate(tmp_path / "out.npy", 40, "<f4", segments=20)
    report = flowmap.validate(target)
    assert repr(report) == f"<flowmap.ValidationReport {target.path}: 20 problems>"
    html = report._repr_html_()
    assert "state not valid digest none sealed no" in plain(html)
    assert "20 segments (0-19) are not done but pending" in html
    flowmap.fill(target, "arange", executor="threads")
    report = flowmap.validate(target)
    assert repr(report) == f"<flowmap.ValidationReport {target.path}: ok>"
    assert f"state valid digest {report.digest} sealed yes" in plain(report._repr_html_())
