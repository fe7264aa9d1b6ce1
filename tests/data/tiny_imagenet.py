def write(root, save, text):
    top = root / "tiny-imagenet-200"
    wnids = ("n01443537", "n09999999")
    for wnid in wnids:
        for n in range(5):
            save(top / "train" / wnid / "images" / f"{wnid}_{n}.JPEG")
    rows = []
    for n in range(4):
        save(top / "val" / "images" / f"val_{n}.JPEG")
        rows.append(f"val_{n}.JPEG\t{wnids[n % 2]}\t0\t0\t9\t9")
    text(top / "val" / "val_annotations.txt", *rows)
    text(top / "words.txt", "n09999999\tmade-up thing, second name")
    save(top / "test" / "images" / "test_0.JPEG")
