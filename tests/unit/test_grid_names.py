"""Folder names of the cells of a grid."""

from types import SimpleNamespace

from limpet.grid import cell_name


def name(**cell):
    return cell_name(SimpleNamespace(cell={key.replace("__", "."): value for key, value in cell.items()}))


def test_short_values_are_spelled_out():
    assert name(method="coop", seed=1) == "method=coop,seed=1"


def test_long_names_fit_any_file_system_and_stay_apart():
    names = {name(**{f"optim__lr{i}": "ä漢" * 40 for i in range(20)}, seed=seed) for seed in range(3)}
    assert len(names) == 3
    assert all(len(each.encode()) <= 150 for each in names)


def test_values_that_differ_in_odd_signs_only_have_folders_of_their_own():
    names = {name(data__root=root) for root in ("a/b", "a b", "a:b", "a_b", "../a_b")}
    assert len(names) == 5
    assert not any(set(each) & set('/\\:*?"<>| ') for each in names)
