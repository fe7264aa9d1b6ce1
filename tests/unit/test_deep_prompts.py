"""VPT, IVLP and MaPLe: what they must be equal to, which vectors matter, and which towers they serve."""

from contextlib import ExitStack

import pytest
import torch
from limpet.backbone import describe
from limpet.classes import ClassSet
from limpet.errors import LimpetError
from limpet.methods.ivlp import IVLP
from limpet.methods.ivlp import Config as IVLPConfig
from limpet.methods.maple import Config as MaPLeConfig
from limpet.methods.maple import MaPLe
from limpet.methods.vpt import VPT
from limpet.methods.vpt import Config as VPTConfig
from limpet.recipe import BackboneConfig

CLASSES = ClassSet(("cat", "golden_retriever", "x-ray", "boeing 747-400"), texts={}, templates=("a photo of a {}.",))
EXACT = {"rtol": 0, "atol": 1e-11}
LAYERS = 4  # of both towers of the random backbone


def images():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=generator)
    return {"image": pictures, "label": torch.tensor([0, 2, 3])}


def make(method, config, clip, spread=30.0):
    """A method with random prompts large enough that mistakes show."""
    torch.manual_seed(0)
    adapter = method(config).setup(clip, CLASSES).eval()
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "couplings" not in name:
                parameter[1:] *= spread
    return adapter


def describes(name):
    return describe(BackboneConfig(name=name, pretrained="random"))


@pytest.mark.parametrize("count", [2, 4])
def test_shallow_text_prompts_made_of_words_are_zero_shot(random_clip, count):
    clip = random_clip()
    for adapter in (make(IVLP, IVLPConfig(count, 2, 1, 1), clip), make(MaPLe, MaPLeConfig(count, 1), clip)):
        torch.testing.assert_close(adapter.class_weights(), adapter.zero_shot_weights(), **EXACT)
    for adapter in (make(IVLP, IVLPConfig(count, 2, 2, 1), clip), make(MaPLe, MaPLeConfig(count, 2), clip)):
        assert (adapter.class_weights() - adapter.zero_shot_weights()).abs().max() > 1e-3


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_outputs_at_prompt_places_matter_only_where_they_flow_on(random_clip, depth):
    """Noise at the prompts' outputs changes the answer at the deepest prompted layer alone, unless it is the last."""
    clip = random_clip()
    adapter = make(IVLP, IVLPConfig(2, 2, depth, depth), clip)
    noise = torch.randn(2, 32, dtype=torch.float64)

    def answers(side, layer=None):
        def add(_, __, out):
            out = out.clone()
            if side == "text" and out.shape[1] > len(CLASSES):  # not the last block, which has a row for each class
                out[:, 1:3] += noise[:, : out.shape[-1]]
            if side == "image" and out.shape[1] == 1 + 16 + 2:  # where prompt rows are computed at all
                out[:, -2:] += noise
            return out

        tower = clip.model.transformer if side == "text" else clip.model.visual.transformer
        with ExitStack() as stack, torch.no_grad():
            if layer is not None:
                stack.callback(tower.resblocks[layer].mlp.register_forward_hook(add).remove)
            adapter.train().eval()
            return adapter.class_weights() if side == "text" else adapter.encode_image(images())

    for side in ("text", "image"):
        for layer in range(depth):
            change = (answers(side, layer) - answers(side)).abs().max()
            if layer == depth - 1 and depth < LAYERS:
                assert change > 1e-4, (side, layer)
            else:
                assert change < 1e-12, (side, layer)


def plain_image_features(clip, pictures, prompts, after_class_token):
    """Prompts written out by hand, at the end or behind the class token, through open_clip's own blocks."""
    visual, first = clip.model.visual, prompts[0]
    x = visual.conv1(pictures).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    split = 1 if after_class_token else x.shape[1]
    x = visual.ln_pre(torch.cat([x[:, :split], first.expand(len(x), -1, -1), x[:, split:]], 1))
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < len(prompts):
            new = prompts[layer].expand(len(x), -1, -1)
            x = torch.cat([x[:, :split], new, x[:, split + new.shape[1] :]], 1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize("after_class_token", [False, True])
def test_image_prompts_have_no_place(random_clip, depth, after_class_token):
    clip = random_clip()
    adapter = make(VPT, VPTConfig(3, depth), clip)
    got = adapter.encode_image(images())
    want = plain_image_features(clip, images()["image"], adapter.image_prompts(), after_class_token)
    torch.testing.assert_close(got, torch.nn.functional.normalize(want, dim=-1), **EXACT)
    with torch.no_grad():
        adapter.prompts.copy_(adapter.prompts[:, [2, 0, 1]])
    torch.testing.assert_close(adapter.encode_image(images()), got.detach(), **EXACT)


def test_text_prompts_have_places(random_clip):
    adapter = make(IVLP, IVLPConfig(3, 2, 2, 1, init=None), random_clip(), spread=30)
    with torch.no_grad():
        adapter.text_vectors[0] *= 30
        before = adapter.class_weights()
        adapter.text_vectors.copy_(adapter.text_vectors.flip(1))
        assert (adapter.train().eval().class_weights() - before).abs().max() > 1e-3


def test_no_image_prompts_and_zero_image_prompts(random_clip):
    clip = random_clip()
    frozen = clip.encode_image(images()["image"])
    none = make(IVLP, IVLPConfig(image_length=0), clip)
    torch.testing.assert_close(none.encode_image(images()), frozen, **EXACT)
    assert none.needs(none.config, clip.spec) == "features" and list(none.state_dict()) == ["text_vectors"]
    zero = make(VPT, VPTConfig(2, 1), clip)
    with torch.no_grad():
        zero.prompts.zero_()
    assert (zero.encode_image(images()) - frozen).abs().max() > 1e-6


def test_vpt_leaves_the_text_alone(random_clip):
    adapter = make(VPT, VPTConfig(2), random_clip()).train()
    assert adapter.class_weights() is adapter.class_weights()  # encoded once
    torch.testing.assert_close(adapter.class_weights(), adapter.zero_shot_weights(), rtol=0, atol=0)


def test_maple_folds_into_independent_prompts(random_clip):
    clip = random_clip()
    maple = make(MaPLe, MaPLeConfig(2, 3), clip)
    ivlp = make(IVLP, IVLPConfig(2, 2, 3, 3), clip)
    ivlp.load_state_dict({"text_vectors": maple.text_vectors, "image_vectors": torch.stack(maple.image_prompts())})
    torch.testing.assert_close(maple.logits(images()), ivlp.logits(images()), **EXACT)


def test_maple_couples_the_towers(random_clip):
    adapter = MaPLe(MaPLeConfig(2, 3)).setup(random_clip(), CLASSES)
    first, second, third = (c.weight for c in adapter.couplings)
    assert torch.equal(second, third) and not torch.equal(first, second) and second is not third
    assert torch.equal(adapter.couplings[1].bias, adapter.couplings[2].bias)
    adapter.encode_image(images())[:, 0].sum().backward()
    assert (adapter.text_vectors.grad.abs().sum((1, 2)) > 0).all()


@pytest.mark.parametrize("memory", [None, 20])
def test_deep_text_prompts_in_whole_padded_prompts(random_clip, memory):
    """Cutting, sharing and chunking change neither features nor gradients."""
    clip = random_clip()
    adapter = make(MaPLe, MaPLeConfig(2, 4), clip).train()
    clip.text_memory = memory
    try:
        got = adapter.class_weights()
        tower = clip.text
        ids = clip.tokenize([f"a photo of a {CLASSES.text(n)}." for n in CLASSES.names])
        x = tower.embed(ids)
        for layer, (vectors, block) in enumerate(zip(adapter.text_prompts(), tower.blocks, strict=True)):
            x = torch.cat([x[:, :1], vectors.expand(len(x), -1, -1), x[:, 3:]], 1)
            x = x + tower.positions if layer == 0 else x
            x = block(x, attn_mask=tower.mask)
        x = tower.project(tower.norm(x)[torch.arange(len(x)), ids.argmax(-1)])
        want = torch.nn.functional.normalize(x, dim=-1)
        torch.testing.assert_close(got, want, **EXACT)
        weights = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
        for a, b in zip(
            torch.autograd.grad((got * weights).sum(), [adapter.text_vectors]),
            torch.autograd.grad((want * weights).sum(), [adapter.text_vectors]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **EXACT)
    finally:
        clip.text_memory = None


def test_nothing_is_kept_for_gradients_of_frozen_weights(random_clip):
    """Inputs of frozen linear layers are not saved, and frozen tensors are left as they are by weight decay."""
    clip = random_clip(torch.float32)
    adapter = MaPLe(MaPLeConfig()).setup(clip, CLASSES).train()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    saved, inputs = set(), []
    blocks = [*clip.model.transformer.resblocks, *clip.model.visual.transformer.resblocks]
    hooks = [
        layer.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
        for block in blocks
        for layer in (block.mlp.c_fc, block.mlp.c_proj)
    ]

    def keep(tensor):
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    data = {**images(), "image": images()["image"].float()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = adapter.loss(data)
    for hook in hooks:
        hook.remove()
    assert len(inputs) == 4 * LAYERS
    assert not saved & {x.untyped_storage().data_ptr() for x in inputs}
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.1, momentum=0.9, weight_decay=0.1)
    loss.backward()
    optimiser.step()
    assert all(p.grad is None for p in clip.model.parameters())
    assert all(torch.equal(before[k], v) for k, v in clip.model.state_dict().items())


class Stub:
    """A backbone of which nothing but its description is known."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, spec):
        self.spec = spec


@pytest.mark.parametrize(
    ("method", "config", "count"),
    [
        (VPT, VPTConfig(), 73_728),
        (IVLP, IVLPConfig(init=None), 30_720),
        (IVLP, IVLPConfig(4, 4, 9, 9, init=None), 46_080),
        (IVLP, IVLPConfig(text_length=4, image_length=0, init=None), 24_576),
        (MaPLe, MaPLeConfig(init=None), 3_555_072),
        (MaPLe, MaPLeConfig(depth=3, init=None), 1_185_024),
    ],
)
def test_learned_sizes_on_vit_b_16(method, config, count):
    adapter = method(config).setup(Stub(describes("ViT-B-16")), CLASSES)
    assert sum(p.numel() for p in adapter.learnable()) == count
    assert not adapter.notes


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "limpet-tiny"])
def test_any_width_and_depth(name):
    spec = describe("limpet-tiny") if name == "limpet-tiny" else describes(name)
    for method, config, paper in ((VPT, VPTConfig(), 12), (MaPLe, MaPLeConfig(init=None), 9)):
        assert method.supports(config, spec) is None
        adapter = method(config).setup(Stub(spec), CLASSES)
        limit = spec.vision_layers if method is VPT else min(spec.vision_layers, spec.text_layers)
        prompts = adapter.image_prompts()
        assert len(prompts) == min(paper, limit) and prompts[0].shape[-1] == spec.vision_width
        assert len(adapter.notes) == (limit < paper)
        if limit < paper:
            assert f"all {limit} layers" in adapter.notes[0] and f"depth is {paper}" in adapter.notes[0]


def test_depths_are_counts_fractions_all_or_refused(random_clip):
    clip = random_clip()
    for depth, layers in ((3, 3), (0.5, 2), ("all", 4), (None, 4), (1, 1), (1.0, 4), (0.01, 1)):
        adapter = VPT(VPTConfig(2, depth)).setup(clip, CLASSES)
        assert len(adapter.image_prompts()) == layers
    for depth in (5, 0, -1, 0.0, 1.5, "some", True):
        reason = VPT.supports(VPTConfig(2, depth), clip.spec)
        assert reason and "method.depth" in reason
        with pytest.raises(LimpetError, match="method.depth"):
            VPT(VPTConfig(2, depth)).setup(clip, CLASSES)
    assert "text_depth is 9" in IVLP.supports(IVLPConfig(text_depth=9), clip.spec)
    assert "image tower" in IVLP.supports(IVLPConfig(image_depth=9), clip.spec)
    assert "4 layers" in MaPLe.supports(MaPLeConfig(depth=9), clip.spec)
    assert "at least 1" in MaPLe.supports(MaPLeConfig(length=0), clip.spec)


def test_towers_are_refused_before_weights_load():
    resnet, coca, roberta = describes("RN50"), describes("coca_ViT-B-32"), describes("roberta-ViT-B-32")
    for method, config in ((VPT, VPTConfig()), (IVLP, IVLPConfig()), (MaPLe, MaPLeConfig())):
        assert "ResNet" in method.supports(config, resnet)
        assert method.supports(config, coca)
    assert IVLP.supports(IVLPConfig(image_length=0), resnet) is None
    assert "Hugging Face" in MaPLe.supports(MaPLeConfig(), roberta)
    assert VPT.supports(VPTConfig(), roberta) is None  # its text is only read


def test_too_few_words_start_at_random(random_clip):
    adapter = MaPLe(MaPLeConfig(6, 2)).setup(random_clip(), CLASSES)
    assert adapter.phrase == "" and "start at random" in adapter.notes[0]
    assert adapter.logits(images()).shape == (3, 4)


@pytest.mark.parametrize(("method", "config"), [(VPT, VPTConfig(2)), (IVLP, IVLPConfig()), (MaPLe, MaPLeConfig())])
def test_text_is_encoded_once_in_evaluation(random_clip, method, config, monkeypatch):
    clip = random_clip()
    adapter = method(config).setup(clip, CLASSES).eval()
    calls = []
    block = clip.model.transformer.resblocks[0]
    hook = block.mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        with torch.no_grad():
            for _ in range(5):
                adapter.logits(images())
    finally:
        hook.remove()
    assert len(calls) <= 1
