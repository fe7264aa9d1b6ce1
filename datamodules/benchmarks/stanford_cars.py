"""StanfordCars: 196 models of cars."""

from __future__ import annotations

from pathlib import Path

from .reading import Entry, Found, need, table


def read(folder: Path, variant: str | None = None) -> Found:
    """Read the MATLAB files of the devkit; the year of a model goes to the front (as CoOp)."""
    import scipy.io

    meta = scipy.io.loadmat(need(folder / "devkit" / "cars_meta.mat"), squeeze_me=True)["class_names"]
    names = [_year_first(str(name)) for name in meta.reshape(-1)]
    train = need(folder / "devkit" / "cars_train_annos.mat", folder / "cars_train_annos.mat")
    test = need(
        folder / "cars_test_annos_withlabels.mat",
        folder / "devkit" / "cars_test_annos_withlabels.mat",
    )
    found = [
        Entry(f"cars_{split}/{row['fname']}", names[int(row["class"]) - 1], split)
        for file, split in ((train, "train"), (test, "test"))
        for row in table(file)
    ]
    return Found(found, names, split="the devkit's training and test lists")


def _year_first(name: str) -> str:
    *model, year = name.split(" ")
    return " ".join([year, *model])
