def write(root, save, text):
    top = root / "sun397"
    places = ("/a/abbey", "/a/apartment_building/outdoor", "/z/zen_garden")
    text(top / "ClassName.txt", *places)
    for file, numbers in (("Training_01", range(5)), ("Testing_01", range(5, 8))):
        images = [f"{place}/sun_{n}.jpg" for place in places for n in numbers]
        for image in images:
            save(top / "SUN397" / image[1:])
        text(top / f"{file}.txt", *images)
