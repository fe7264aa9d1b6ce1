def write(root, save, text):
    for name in ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "airplanes", "sea_horse"):
        for n in range(1, 11):
            save(root / "caltech-101" / "101_ObjectCategories" / name / f"image_{n:04d}.jpg")
