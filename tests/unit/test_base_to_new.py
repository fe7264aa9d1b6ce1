"""Base, new and joint: one pass of the images through a learned image tower, the same answers as three."""

import pytest
import torch
from limpet.callbacks.base_to_new import label_spaces, measure
from limpet.errors import BackboneError
from limpet.recipe import load_recipe
from limpet.session import prepare
from limpet.tasks.classification import evaluate

DATA = ["data.species=6", "data.test=3", "data.train=2", "data.val=2", "data.shots=2", "evaluate.batch_size=4"]


@pytest.fixture(params=["vpt", "maple", "promptsrc", "lora"])
def made(request):
    """A session whose method has an image tower of its own, moved away from its start."""
    session = prepare(load_recipe("quickstart", [*DATA, f"method={request.param}"]))
    with torch.no_grad():
        for parameter in session.adapter.learnable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return session


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_image_is_encoded_once(made, monkeypatch):
    adapter, classes, seen = made.adapter, made.classes, []
    kind = type(adapter)
    original = kind.encode_image

    def counted(self, batch):
        seen.extend(batch["path"])
        return original(self, batch)

    monkeypatch.setattr(kind, "encode_image", counted)
    spaces = label_spaces(classes, "base_to_new")
    found = measure(adapter, made.data, spaces)
    assert sorted(seen) == sorted(sample.path for sample in made.data.samples["test"])
    for space, part in spaces.items():
        alone = evaluate(adapter, made.data.restrict(part.names).test_dataloader(), part)
        outcome = found.outcomes[space]
        assert outcome.paths == alone.paths and torch.equal(outcome.labels, alone.labels)
        torch.testing.assert_close(outcome.logits, alone.logits, rtol=1e-4, atol=1e-3)
    assert len(found.outcomes["joint"].paths) == 18 and not found.unanswered


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lists_of_base_and_new_classes_that_leave_some_out():
    names = prepare(load_recipe("quickstart", [*DATA])).classes.names
    listed = [f"classes.base=[{names[4]}, {names[0]}]", f"classes.new=[{names[2]}]"]
    session = prepare(load_recipe("quickstart", [*DATA, "method=vpt", *listed]))
    spaces = label_spaces(session.classes, "base_to_new")
    found = measure(session.adapter, session.data, spaces)
    counts = {space: (len(o.paths), o.logits.shape[1]) for space, o in found.outcomes.items()}
    assert counts["base"] == (6, 2) and counts["new"] == (3, 1)
    for space, outcome in found.outcomes.items():
        truth = [spaces[space].names[label] for label in outcome.labels.tolist()]
        of = {s.path: session.data.class_names[s.label] for s in session.data.samples["test"]}
        assert truth == [of[path] for path in outcome.paths]


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "vpt", "lora"])
def test_methods_that_read_one_of_several_texts_say_so(method):
    words = ["data.species=4", "data.shots=1", "data.test=1", f"method={method}"]
    name = prepare(load_recipe("quickstart", words)).classes.names[1]
    notes = prepare(load_recipe("quickstart", [*words, f"classes.texts={{{name}: [a red fish, a small fish]}}"])).notes
    told = [note for note in notes if "1 of 4 classes have several texts" in note]
    assert len(told) == (method in ("coop", "cocoop", "maple"))
    assert all("before the first, such as 'a red fish'" in note for note in told)


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_a_new_class_whose_text_does_not_fit_is_refused_before_training(method):
    words = ["data.species=4", "data.shots=1", "data.test=1", f"method={method}"]
    new = prepare(load_recipe("quickstart", words)).classes.new().names[-1]
    long = f"classes.texts={{{new}: [{' '.join(['fish'] * 100)}]}}"
    with pytest.raises(BackboneError, match="shorten the text"):
        prepare(load_recipe("quickstart", [*words, long]))
    if method == "coop":  # with a context of its own for every class, new ones are not asked about
        prepare(load_recipe("quickstart", [*words, "method.class_specific=true", long]))
