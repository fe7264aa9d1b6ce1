def write(root, save, text):
    for age in range(1, 41):
        save(root / "UTKFace" / f"{age}_{age % 2}_{age % 5}_2017010917401{age % 10}.jpg")
    save(root / "UTKFace" / "no_age.jpg")
