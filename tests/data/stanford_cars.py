import numpy as np
import scipy.io

NAMES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")


def write(root, save, text):
    top = root / "stanford_cars"
    (top / "devkit").mkdir(parents=True)
    scipy.io.savemat(top / "devkit" / "cars_meta.mat", {"class_names": np.array(NAMES, dtype=object)})
    fields = [(f"bbox_{k}", object) for k in ("x1", "y1", "x2", "y2")] + [("class", object), ("fname", object)]
    for split, count, file in (("train", 5, "devkit/cars_train_annos.mat"), ("test", 3, "cars_test_annos_withlabels.mat")):
        rows = [(1, 1, 8, 8, 1 + n % 3, f"{n + 1:05d}.jpg") for n in range(3 * count)]
        for row in rows:
            save(top / f"cars_{split}" / row[-1])
        scipy.io.savemat(top / file, {"annotations": np.array([rows], dtype=fields)})
