"""How often each category of an annotation file occurs: the federated loss draws classes by it."""

from collections import Counter


def count_categories(content: dict) -> list[dict]:
    """Count images and instances of each category.

    A video counts as all of its frames, as in the published counts of LV-VIS.

    Args:
        content: an annotation file in LVIS, COCO or YouTube-VIS format.

    Returns:
        Its categories with "image_count" and "instance_count".
    """
    annotations = content.get("annotations") or []
    if "videos" in content:
        parent = "video_id"
        lengths = {video["id"]: len(video["file_names"]) for video in content["videos"]}
    else:
        parent = "image_id"
        lengths = {}
    images, instances = Counter(), Counter()
    for category_id, number in {(a["category_id"], a[parent]) for a in annotations}:
        images[category_id] += lengths.get(number, 1)
    for annotation in annotations:
        instances[annotation["category_id"]] += lengths.get(annotation[parent], 1)
    return [
        {
            **category,
            "image_count": images[category["id"]],
            "instance_count": instances[category["id"]],
        }
        for category in content["categories"]
    ]
