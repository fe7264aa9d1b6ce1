def write(root, save, text):
    top = root / "dtd"
    for split, numbers in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 9))):
        images = [f"{name}/{name}_{n:04d}.jpg" for name in ("banded", "polka-dotted", "zigzagged") for n in numbers]
        for image in images:
            save(top / "images" / image)
        text(top / "labels" / f"{split}1.txt", *images)
