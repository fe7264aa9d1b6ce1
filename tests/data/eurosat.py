def write(root, save, text):
    for name in ("AnnualCrop", "Forest", "Highway", "SeaLake"):
        for n in range(1, 11):
            save(root / "eurosat" / "2750" / name / f"{name}_{n}.jpg")
