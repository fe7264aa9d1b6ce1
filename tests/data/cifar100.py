import zipfile

from PIL import Image


def write(root, save, text):
    """ZIP archives of class folders."""
    for split, count in (("train", 6), ("test", 3)):
        with zipfile.ZipFile(root / f"cifar100_{split}.zip", "w") as archive:
            for label, name in enumerate(("apple", "aquarium_fish", "worm")):
                for n in range(count):
                    with archive.open(f"{name}/{split}_{n}.png", "w") as file:
                        Image.new("RGB", (32, 32), (80 * label, 10 * n, 255 if split == "test" else 0)).save(file, "png")
