#!/usr/bin/env python
"""Remove the annotations of novel categories from LV-VIS, for training.

    python tools/remove_lvvis_novel.py --ann datasets/LVVIS/train/train_instances_.json

writes datasets/LVVIS/train/train_instances_nonovel.json. Videos and categories stay.
"""

from collections.abc import Sequence

from ovformer_tools.category_files import make_parser, without_novel, write_kept


def main(argv: Sequence[str] | None = None) -> None:
    """Write the annotation file without annotations of novel categories."""
    out = "beside --ann, named *_nonovel.json"
    parser = make_parser(__doc__, "datasets/LVVIS/train/train_instances_.json", out)
    write_kept(parser, argv, lambda stem: f"{stem.rstrip('_')}_nonovel.json", without_novel)


if __name__ == "__main__":
    main()
