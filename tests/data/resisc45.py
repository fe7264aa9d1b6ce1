def write(root, save, text):
    for name in ("airplane", "baseball_diamond", "wetland"):
        for n in range(1, 9):
            save(root / "NWPU-RESISC45" / name / f"{name}_{n:03d}.jpg")
