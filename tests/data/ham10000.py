def write(root, save, text):
    top = root / "ham10000"
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for lesion in range(12):
        for view in range(2):
            image = f"ISIC_{lesion:05d}{view}"
            save(top / f"HAM10000_images_part_{1 + view}" / f"{image}.jpg")
            rows.append(f"HAM_{lesion:04d},{image},{('mel', 'nv', 'vasc')[lesion % 3]},histo,50,male,back")
    text(top / "HAM10000_metadata.csv", *rows)
