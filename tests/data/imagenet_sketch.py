def write(root, save, text):
    for wnid in ("n01443537", "n04008634"):
        for n in range(2):
            save(root / "imagenet-sketch/images" / wnid / f"{n}.jpg")
