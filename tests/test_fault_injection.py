"""The fault injection of docs/reliability.md, with few runs."""

import os

import pytest

import fault_injection


@pytest.mark.slow
def test_nothing_is_lost() -> None:
    figures = fault_injection.main(
        ["--runs", "3", "--others", "3", "--damages", "3", "--only", *PARTS]
    )
    assert figures["losses"] == []
    for row in figures["runs"]:
        assert row["runs"] == row["continued"] == row["equal to the bit"], row
    for row in figures["files"]:
        if row["file"] in ("checkpoint", "results.json.part0"):  # which carry checksums
            assert row["unnoticed"] == 0, row


PARTS = ["kills", "older", "reads", "files"]
if os.geteuid() == 0 and os.path.exists("/proc/self/mounts"):
    PARTS.append("disk")
