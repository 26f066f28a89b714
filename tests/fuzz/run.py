"""Fuzz a reader of files, guided by coverage: inputs that reach new code are kept and changed.

    pip install atheris
    python tests/fuzz/run.py results -max_total_time=300

The first word is a property of ``properties``; what follows are options of libFuzzer. A fault ends
the run with a traceback, or the name of the signal, and leaves its input in a file crash-*, with
which the same command repeats it. Not collected by pytest, whose short form of the same is
``test_properties.py``.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ovformer"]):
    from properties import PROPERTIES


def main() -> None:
    """Fuzz."""
    if len(sys.argv) < 2 or sys.argv[1] not in PROPERTIES:
        sys.exit(f"usage: python tests/fuzz/run.py {{{','.join(PROPERTIES)}}} [-option=value ...]")
    check = PROPERTIES[sys.argv[1]]
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:

        def test_one_input(data: bytes) -> None:
            provider = atheris.FuzzedDataProvider(data)
            check(provider.ConsumeIntInRange, Path(folder))

        # Short inputs, with which libFuzzer begins, make few choices.
        options = ["-len_control=0", "-max_len=400", *sys.argv[2:]]
        atheris.Setup([sys.argv[0], *options], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
