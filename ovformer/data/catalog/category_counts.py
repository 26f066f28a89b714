"""Counts how often each category of an annotation file occurs: the federated loss needs it."""

from collections import Counter

from ovformer.data.files.json_file import TEXTS, WHOLE, check_entries, index_by_id


def count_categories(content: dict) -> list[dict]:
    """Count images and instances of each category.

    A video counts as many images as it has frames, as in the published counts of LV-VIS.

    Args:
        content: an annotation file in LVIS, COCO or YouTube-VIS format.

    Returns:
        Its categories with "image_count" and "instance_count".

    Raises:
        ValueError: an entry is not valid, or refers to an entry that the file lacks.
    """
    annotations = content.get("annotations")
    annotations = [] if annotations is None else annotations
    categories = index_by_id("category", content["categories"], {})
    if "videos" in content:
        parent = "video_id"
        videos = index_by_id("video", content["videos"], {"file_names": TEXTS})
        lengths = {number: len(video["file_names"]) for number, video in videos.items()}
    else:
        parent = "image_id"
        lengths = {}
    check_entries("annotation", annotations, {"category_id": WHOLE, parent: WHOLE})
    images, instances = Counter(), Counter()
    # An image counts once for a category, however many instances it has: hence the set.
    for category_id, number in {(a["category_id"], a[parent]) for a in annotations}:
        images[category_id] += lengths.get(number, 1)
    for annotation in annotations:
        instances[annotation["category_id"]] += lengths.get(annotation[parent], 1)
    if unknown := instances.keys() - categories.keys():
        raise ValueError(
            f"annotations have the category id {min(unknown)}, which is not among the "
            f"{len(categories)} categories."
        )
    return [
        {**category, "image_count": images[number], "instance_count": instances[number]}
        for number, category in categories.items()
    ]
