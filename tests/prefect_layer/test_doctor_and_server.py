"""`flowmap doctor` beside a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowmap.doctor import examine

if TYPE_CHECKING:
    from servers import Server


def test_real_server(server: Server) -> None:
    """It is asked what Prefect's own routes answer; by default it records one at a time."""
    found = {finding.name: finding for finding in examine()}
    assert found["server"].level == "ok", found["server"]
    assert server.url in found["server"].found
    assert found["recorder"].level == "note"
    assert "batch_size 1, read_batch_size 1" in found["recorder"].found
    assert found["database"].level == "ok", found["database"]
