def write(root, save, text):
    for name in ("agricultural", "denseresidential", "tenniscourt"):
        for n in range(8):
            save(root / "UCMerced_LandUse" / "Images" / name / f"{name}{n:02d}.tif")
