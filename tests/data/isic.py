def write(root, save, text):
    top = root / "ISIC2018"
    rows = ["image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"]
    for n in range(12):
        save(top / "ISIC2018_Task3_Training_Input" / f"ISIC_{n:07d}.jpg")
        rows.append(f"ISIC_{n:07d}," + ",".join("1.0" if k == n % 2 else "0.0" for k in range(7)))
    text(top / "ISIC2018_Task3_Training_GroundTruth.csv", *rows)
    text(top / "ISIC2018_Task3_Training_LesionGroupings.csv", "image,lesion_id", *(f"ISIC_{n:07d},L{n % 6}" for n in range(12)))
