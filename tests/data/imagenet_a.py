def write(root, save, text):
    for wnid in ("n01443537", "n04008634"):
        for n in range(2):
            save(root / "imagenet-adversarial/imagenet-a" / wnid / f"{n}.jpg")
