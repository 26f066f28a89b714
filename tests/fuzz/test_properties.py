"""Damaged and hostile files, by hypothesis. ``run.py`` looks longer, and is guided by coverage.

HYPOTHESIS_MAX_EXAMPLES asks for more of each than the few that are quick.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from properties import PROPERTIES

EXAMPLES = int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "60"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROPERTIES)
def test_any_file_is_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # simplifying would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        PROPERTIES[name](lambda low, high: data.draw(st.integers(low, high)), tmp_path)

    check()
