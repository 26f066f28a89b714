#!/usr/bin/env python
"""Check that a training or evaluation can run, before it is started: look here first.

    python tools/check_setup.py                                             what is installed
    python tools/check_setup.py --config-file configs/lvis/ovformer_R50_bs8.yaml --num-gpus 4
    python tools/check_setup.py --config-file configs/lvvis/ovformer_R50_bs8.yaml --eval-only \
        MODEL.WEIGHTS models/ovformer_r50_lvis.pth

It takes the options of a training script, which it chooses by the config's model. A table shows
packages, devices and kernels; each data set, with the first file that is missing or broken;
weights, text classifier and CLIP; free disk space. The last section lists the errors at which the
script itself would stop. Nothing is written or downloaded; no data need to be there.

The exit status is 0 if all is well, 1 if something is missing or wrong, and 2 if nothing was
checked: a wrong option, or no such config file.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence

SCRIPTS = ("train_net.py", "train_net_video.py", "train_net_lvvis.py")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or JSON, and exit."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        from ovformer.arguments import exit_on_user_error
        from ovformer.preflight import setup_environment
        from ovformer.preflight.setup_table import Row, Table
    except ModuleNotFoundError as error:  # the package "packaging", which many others need
        parser.exit(1, f"{parser.prog}: {error.name} is missing: pip install -e . (INSTALL.md)\n")
    logging.getLogger("ovformer").setLevel(logging.ERROR)  # the table has the warnings
    table = Table(is_printed=not args.json)
    table.add("Environment", setup_environment.check_packages())
    try:
        table.add("PyTorch and OVFormer", setup_environment.check_imports())
    except (ImportError, OSError, ValueError) as error:
        table.add("", [Row("bad", "import", f"{type(error).__name__}: {error}")])
    else:
        table.add("Devices", setup_environment.check_devices())
        if args.config_file:
            with exit_on_user_error(parser):
                check_config(args, table)
    finish(args, table)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Exit status: 0 good, 1 bad, 2 nothing checked."
    )
    add = parser.add_argument
    add("--config-file", default="", help="without it, only the environment is checked")
    add("--script", choices=SCRIPTS, help="default: the one that runs the config's model")
    add("--eval-only", action="store_true", help="what an evaluation needs")
    add("--resume", action="store_true", help="from the last checkpoint of OUTPUT_DIR")
    add("--num-gpus", type=int, default=1, help="processes on each machine")
    add("--num-machines", type=int, default=1)
    add("--decode", action="store_true", help="decode all images and frames, not a few of each set")
    add("--load-clip", action="store_true", help="load CLIP, even if that downloads it")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... at the end, as of the script")
    return parser


def check_config(args: argparse.Namespace, table) -> None:
    """Add the sections about a config to the table.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it can't be read.
    """
    from ovformer.config import read_config
    from ovformer.engine.stages import STAGES
    from ovformer.preflight.check_config import find_faults, find_slow_errors
    from ovformer.preflight.model import find_model_errors
    from ovformer.preflight.setup_data import check_data
    from ovformer.preflight.setup_model import check_disk, check_vocabulary, check_weights
    from ovformer.preflight.setup_table import Row

    name = read_config(args.config_file, args.opts)[0].MODEL.META_ARCHITECTURE
    script_of_model = {stage.meta_architecture: stage.script for stage in STAGES}
    script = args.script or script_of_model.get(name, SCRIPTS[0])
    stage = next(stage for stage in STAGES if stage.script == script)
    cfg, faults = find_faults(stage, args)
    network, _ = find_model_errors(cfg, stage)
    why = f"runs {name}" if script_of_model.get(name) == script else f"asked to run {name}"
    table.add("Run", [Row("ok", "script", f"{script}, which {why}")])
    table.add("Data sets", check_data(cfg, args.eval_only, args.decode))
    table.add("Weights", check_weights(cfg, network, args.resume))
    table.add("Vocabulary", check_vocabulary(cfg, args.eval_only, args.load_clip))
    table.add("Disk", check_disk(cfg, network, args))
    errors = faults.errors or find_slow_errors(cfg, stage, args.eval_only, load_clip=False)
    rows = [Row("bad", "fault", error) for error in errors]
    rows += [Row("warning", "likely not meant", warning) for warning in faults.warnings]
    table.add(f"What {script} says before it starts", rows or [Row("ok", "faults", "none")])


def finish(args: argparse.Namespace, table) -> None:
    """Print JSON, or the last line of the table, and exit."""
    rows = table.to_json()
    count = sum(row["status"] == "bad" for row in rows)
    if args.json:
        print(json.dumps({"is_good": table.is_good, "rows": rows}, indent=1))
    elif table.is_good:
        print("\nAll is well.")
    else:
        print(f"\n{count} row(s) with something to fix.")
    sys.exit(0 if table.is_good else 1)


if __name__ == "__main__":
    main()
