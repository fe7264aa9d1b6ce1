AGES = ("(0, 2)", "(4, 6)", "(8, 12)", "(15, 20)", "(25, 32)", "(38, 43)", "(48, 53)", "(60, 100)", "35", "None")


def write(root, save, text):
    top = root / "adience"
    for fold in range(5):
        rows = ["user_id\toriginal_image\tface_id\tage\tgender"]
        for n, age in enumerate(AGES):
            rows.append(f"user{fold}{n}\t{n}_o.jpg\t{n}\t{age}\tm")
            save(top / "aligned" / f"user{fold}{n}" / f"landmark_aligned_face.{n}.{n}_o.jpg")
        text(top / f"fold_{fold}_data.txt", *rows)
