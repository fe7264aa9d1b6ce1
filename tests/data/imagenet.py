def write(root, save, text):
    for split, count in (("train", 6), ("val", 3)):
        for wnid in ("n01440764", "n01443537", "n04008634", "n03773504"):
            for n in range(count):
                save(root / "imagenet" / "images" / split / wnid / f"{split}_{n}.JPEG")
