"""The checks of a config as a function, without a script."""

from collections.abc import Callable

import pytest

from ovformer.d2 import default_argument_parser
from ovformer.engine.stages import IMAGE, Stage
from ovformer.preflight.check_config import read_checked_config
from ovformer.preflight.report import ConfigError
from support.tiny_runs import TinyRun


@pytest.fixture
def find_errors(tiny_run: TinyRun) -> Callable[..., list[str]]:
    """A function that checks the tiny config and returns the errors.

    Its arguments are KEY VALUE pairs, the stage, and options of the command line by name.
    """

    def find(*opts: str, stage: Stage = IMAGE, **options: object) -> list[str]:
        args = default_argument_parser().parse_args(tiny_run.command(*opts))
        vars(args).update(options)
        try:
            read_checked_config(stage, args)
        except ConfigError as error:
            return str(error).split("\n  ")[1:]
        return []

    return find
