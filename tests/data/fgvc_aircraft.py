def write(root, save, text):
    top = root / "fgvc_aircraft"
    variants = ("707-320", "727-200", "Cessna 172")
    text(top / "variants.txt", *variants)
    number = 1000000
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        rows = []
        for _ in range(count):
            for name in reversed(variants):
                number += 1
                save(top / "images" / f"{number}.jpg")
                rows.append(f"{number} {name}")
        text(top / f"images_variant_{split}.txt", *rows)
