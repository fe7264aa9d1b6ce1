def write(root, save, text):
    for label in (0, 1, 744):
        for n in range(2):
            save(root / "imagenetv2" / "imagenetv2-matched-frequency-format-val" / str(label) / f"{n}.jpeg")
