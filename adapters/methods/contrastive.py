"""Contrastive training of the towers on images with captions, from scratch or from given weights (CLIP, SigLIP, LiT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import blocks, tower_adapter
from ..adapter import Batch
from ..conv_teacher import ConvTeacher
from ..errors import LimpetError, nearest
from ..fresh_text import start_anew
from ..gathering import gathered, gathered_lists, processes
from ..objectives import OBJECTIVES
from ..tower_adapter import TowerAdapter, tower_problem
from ..tower_parts import copied, parts_problem

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

MOST = 100.0  # largest inverse temperature (CLIP)
START_BIAS = -10.0  # of the sigmoid loss (SigLIP)


@dataclass
class Config(tower_adapter.Config):
    """Settings of contrastive training.

    Attributes:
        towers: "both", "image", or "text" (the image tower locked: LiT).
        parts: "all", or some of attention, mlp, norms, projection, embeddings.
        objective: "infonce" (CLIP) or "siglip".
        temperature: inverse temperature at the start; None takes the backbone's own.
        patch_dropout: share of the patches left out of training images at first (FLIP); half of it from 80 % of training on,
            none from 92 % on. Native ViT towers only.
        patch_choice: which patches stay: "random" (FLIP), or "contrast", those whose pixels differ most, with chance in it:
            small things on plain ground stay whole.
        fresh_text: whether the text tower starts anew, its table of tokens apart, for a second training of given weights on data
            whose words the first could not tell apart.
        text_warmup: steps at the start in which the text tower alone learns to match two captions of an image.
        teacher_steps: steps after these in which a small convolutional net learns in place of the image tower, whose patch
            tokens imitate its map from then on. Native ViT towers only, in one process.
        teacher_weight: of the imitation beside the objective.
        lock_text: whether the text tower stays as it is once these steps are over.
        position_offsets: whether half of the texts begin at random positions in the second half of training, so that later
            positions are trained, too.
    """

    parts: list[str] = field(default_factory=lambda: ["all"])
    objective: str = "infonce"
    temperature: float | None = None
    patch_dropout: float = 0.0
    patch_choice: str = "random"
    fresh_text: bool = False
    text_warmup: int = 0
    teacher_steps: int = 0
    teacher_weight: float = 2.0
    lock_text: bool = False
    position_offsets: bool = False


class Contrastive(TowerAdapter):
    """Both towers learn to tell which captions belong to which images; afterwards classes are answered by their prompts.

    A batch with `caption` (B texts) is trained on those, one without on the prompts of its `label`s. Pairs with equal
    captions are positives of each other; `positives` (B, B) bool in a batch, caption j is true of image i, says more.
    With `text_warmup`, `other_caption` (B texts) has a second caption of each image.
    """

    keeps_towers = True
    joins_batches = True

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """What fine-tuning supports; left-out patches need a native ViT, and moved positions a native text tower."""
        if tower_problem(config):
            return tower_problem(config)
        if config.objective not in OBJECTIVES:
            hint = nearest(config.objective, OBJECTIVES)
            return f"method.objective is '{config.objective}'.{hint} It is one of {', '.join(OBJECTIVES)}."
        if not 0 <= config.patch_dropout < 1:
            return f"method.patch_dropout is {config.patch_dropout}: a share of the patches, from 0 to below 1."
        if config.temperature is not None and not 0 < config.temperature <= MOST:
            return f"method.temperature is {config.temperature}: an inverse temperature above 0 and at most {MOST:g}."
        if config.patch_dropout and ("image" not in cls.towers(config) or blocks.image_problem(spec)):
            return (
                f"method.patch_dropout leaves patches out of a trained native ViT; the image tower of {spec.name} is not one "
                "here. Use method.patch_dropout=0."
            )
        if config.patch_choice not in ("random", "contrast"):
            return f"method.patch_choice is '{config.patch_choice}'; it is random or contrast."
        if config.patch_choice == "contrast" and not config.patch_dropout:
            return "method.patch_choice=contrast chooses which patches are left out, and method.patch_dropout=0 leaves none out."
        begins = _beginning_problem(config, spec, cls.towers(config))
        if begins:
            return begins
        if config.position_offsets and ("text" not in cls.towers(config) or spec.text_tower != "transformer"):
            return "method.position_offsets moves the positions of a trained native text tower; here there is none."
        return parts_problem(cls.towers(config), config.layers, config.parts, spec)

    @classmethod
    def batch_keys(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """Captions are used where there are some, else the labels' prompts; the warm-up of the text tower needs two each."""
        return ("other_caption",) if config.text_warmup else ()

    def build(self) -> None:
        """Copy the chosen weights and the temperature."""
        config: Config = self.config
        clip, first = copied(self, ["logit_scale"])
        if config.fresh_text:
            start_anew(clip)
        if config.temperature is not None:
            clip.model.logit_scale.data.fill_(config.temperature).log_()
        self.attach(clip, dict(clip.named_parameters()), first)
        self.bias = nn.Parameter(torch.tensor(START_BIAS, dtype=self.dtype), requires_grad=config.objective == "siglip")
        if config.teacher_steps:
            self.teacher = ConvTeacher(self.backbone.embed_dim, self.backbone.spec.vision_width)
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("warmed", torch.zeros((), dtype=torch.long))
        size = sum(p.numel() * p.element_size() for p in self.learnable()) / 1e6
        teacher = " and the teacher" if config.teacher_steps else ""
        self.notes.append(f"The artefact holds the trained weights of the towers{teacher}: {size:.1f} MB.")

    progress: Tensor
    warmed: Tensor

    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Remember how far training is: fewer patches are left out towards its end. Say where the image tower had no turn."""
        self.progress.fill_((epoch + 1) / epochs)
        if epoch + 1 == epochs and int(self.warmed) < self._beginning and "image" in self.towers(self.config):
            self.notes.append(
                f"Training ended after {int(self.warmed)} of the {self._beginning} steps of method.text_warmup and "
                "method.teacher_steps, before the image tower's turn: it is as it was."
            )

    @property
    def patch_share(self) -> float:
        """Share of the patches that a training image keeps now."""
        done = float(self.progress)
        part = 1.0 if done < 0.8 else 0.5 if done < 0.92 else 0.0
        return 1 - part * float(self.config.patch_dropout)

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of the logits: learned, at most 100."""
        learned: Tensor = self.clip.model.logit_scale
        return learned.exp().clamp(max=MOST)

    def loss(self, batch: Batch) -> Tensor:
        """The objective between the images and the different captions of a batch, of all processes where there are several.

        In the warm-up of the text tower, images are stood for by their other captions.

        Raises:
            LimpetError: a teacher is to learn, and there are several processes.
        """
        if self.config.teacher_steps and processes() > 1:
            raise LimpetError(
                f"method.teacher_steps is {self.config.teacher_steps}: the net that the image tower imitates learns in one "
                f"process, and there are {processes()}. Set trainer.devices=1, or method.teacher_steps=0."
            )
        captions = self._captions(batch)
        once = list(dict.fromkeys(captions))
        texts = gathered(self._train_texts(once))
        beside: Tensor | float = 0.0
        if self.training and int(self.warmed) < self.config.text_warmup:
            self.warmed += 1
            images = gathered(self._train_texts(batch["other_caption"]) + self._untouched())
        elif self.training and int(self.warmed) < self._beginning:
            self.warmed += 1
            images = self._teach(batch)
        else:
            own_images, beside = self._train_images(batch)
            images = gathered(own_images)
        encoded = [text for own in gathered_lists(once) for text in own]
        lists = gathered_lists(captions)
        every = [text for own in lists for text in own]
        names = list(dict.fromkeys(encoded))
        if len(names) < len(encoded):  # processes that drew the same caption
            place = {text: i for i, text in reversed(list(enumerate(encoded)))}
            texts = texts[[place[text] for text in names]]
        column = {text: i for i, text in enumerate(names)}
        own = torch.tensor([column[text] for text in every], device=images.device)
        positives = F.one_hot(own, len(names)).bool()
        if "positives" in batch:
            first = torch.tensor([every.index(text) for text in names], device=images.device)
            positives |= gathered(_across(batch["positives"], lists).to(images.device))[:, first]
        objective = OBJECTIVES[self.config.objective]
        return objective(images @ texts.T, positives, self.scale.log(), self.bias) + beside

    def _untouched(self) -> Tensor | float:
        """Nothing, on which the image tower hangs: between processes every weight needs a gradient at every step."""
        own = [p for name, p in self.clip.named_parameters() if name.startswith("visual.")] if processes() > 1 else []
        return torch.stack([p.sum() for p in own]).sum() * 0.0 if own else 0.0

    def _captions(self, batch: Batch) -> list[str]:
        if "caption" in batch:
            return list(batch["caption"])
        prompts = [self.classes.prompts(self.classes.names[label]) for label in batch["label"].tolist()]
        drawn = torch.rand(len(prompts)).tolist()  # one of the templates for each image
        return [choices[int(at * len(choices))] for choices, at in zip(prompts, drawn, strict=True)]

    @property
    def _beginning(self) -> int:
        """Steps at the start in which the image tower does not learn."""
        return int(self.config.text_warmup + self.config.teacher_steps)

    @property
    def _texts_done(self) -> float:
        """Share of their training that texts have behind them, 1 when they do not learn any more."""
        return int(self.warmed) / self._beginning if self.config.lock_text else float(self.progress)

    def _train_texts(self, texts: list[str]) -> Tensor:
        if "text" not in self.towers(self.config):
            return self.encode_text(texts)
        locked, offset = self.config.lock_text and self._texts_done >= 1, 0
        if self.config.position_offsets and not locked and self._texts_done >= 0.5 and torch.rand(()) < 0.5:
            longest = max(len(self.backbone.token_ids(text)) for text in texts) + 2
            room = self.backbone.spec.context_length - longest
            offset = int(torch.randint(0, max(1, room + 1), ()))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not locked):
            return F.normalize(self.clip.encode_text(texts, normalize=False, offset=offset).to(self.dtype), dim=-1)

    def _teach(self, batch: Batch) -> Tensor:
        """Image features (B, D), unit norm, of the convolutional net while it learns."""
        features: Tensor = self.teacher.train()(batch["image"].to(self.clip.device))
        return features.to(self.dtype)

    def _train_images(self, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Image features (B, D), unit norm, some of the patches left out, and how far their tokens are from the teacher's map."""
        share = self.patch_share
        if not self.training or (share == 1 and not self.config.teacher_steps):
            return self.encode_image(batch), 0.0
        visual: Any = self.clip.model.visual
        pixels = batch["image"].to(self.clip.device, self.clip.dtype)
        x = visual._embeds(pixels)
        places = None
        if share < 1:
            places = self._places(pixels, visual.grid_size, max(1, round(share * (x.shape[1] - 1))))
            x = torch.cat([x[:, :1], x[:, 1:].gather(1, places[..., None].expand(-1, -1, x.shape[2]))], 1)
        layers, beside = list(visual.transformer.resblocks), 0.0
        if self.config.teacher_steps:
            x = blocks.run(layers[:-1], x)
            layers = layers[-1:]
            distance = self.teacher.distance(x[:, 1:], pixels, visual.grid_size, places)
            beside = self.config.teacher_weight * distance.to(self.dtype)
        keep = slice(0, 1) if visual.pool_type == "tok" else slice(0, x.shape[1])
        features = blocks.pool_image(self.clip, blocks.run(layers, x, keep=keep))
        return F.normalize(features.to(self.dtype), dim=-1), beside

    def _places(self, pixels: Tensor, grid: tuple[int, int], count: int) -> Tensor:
        """Numbers (B, count) of the patches that stay, row by row."""
        order = torch.rand(len(pixels), grid[0] * grid[1], device=pixels.device)
        if self.config.patch_choice == "contrast":
            order = (order + 0.5) / (_contrast(pixels, grid).to(order) + 1e-3)
        return order.argsort(1)[:, :count]

    @property
    def answer_scale(self) -> float:
        """The learned inverse temperature, or `logit_scale` of the configuration."""
        fixed = self.config.logit_scale
        return float(self.scale.detach()) if fixed is None else float(fixed)


def _beginning_problem(config: Config, spec: BackboneSpec, towers: Sequence[str]) -> str | None:
    """Why training cannot begin as the configuration says, as a sentence, or None."""
    if config.text_warmup < 0 or (config.text_warmup and "text" not in towers):
        return f"method.text_warmup is {config.text_warmup}: a number of steps, 0 or more, that train the text tower."
    if config.fresh_text and spec.text_tower != "transformer":
        return f"method.fresh_text starts open_clip's own text towers anew; that of {spec.name} is another. Set it to false."
    if config.fresh_text and ("text" not in towers or config.layers != "all" or list(config.parts) != ["all"]):
        return (
            "method.fresh_text draws the whole text tower anew, so all of it must be trained: method.towers=both or text, "
            "method.layers=all and method.parts=[all]."
        )
    if config.fresh_text and config.interpolate is not None:
        return (
            f"method.interpolate is {config.interpolate}, and method.fresh_text leaves no weights of the text tower to mix with: "
            "use one of them."
        )
    if config.teacher_steps < 0 or config.teacher_weight < 0:
        return (
            f"method.teacher_steps is {config.teacher_steps} and method.teacher_weight {config.teacher_weight}: a number of "
            "steps and a weight, 0 or more."
        )
    if config.lock_text and not config.teacher_steps:
        return "method.lock_text keeps what texts learn beside the teacher: give method.teacher_steps, or use method.towers=image."
    if config.teacher_steps and "image" not in towers:
        return "method.teacher_steps trains a net that the image tower imitates: use it with method.towers=both or image."
    if config.teacher_steps and blocks.image_problem(spec):
        return (
            "method.teacher_steps trains a net that the patches of a trained native ViT imitate; the image tower of "
            f"{spec.name} is not one here. Use method.teacher_steps=0."
        )
    return None


def _contrast(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Spread of the values of each patch (B, patches) of images (B, 3, H, W), patches row by row."""
    rows, columns = grid
    high, wide = pixels.shape[2] // rows, pixels.shape[3] // columns
    whole = pixels[:, :, : rows * high, : columns * wide]  # the edge that no patch covers is left out
    patches = whole.reshape(len(pixels), -1, rows, high, columns, wide)
    spread: Tensor = patches.float().std((3, 5)).mean(1)
    return spread.flatten(1)


def _across(positives: Tensor, lists: list[list[str]]) -> Tensor:
    """Widen the positives of this process's own images and captions (n, n) to the captions of all processes (n, sum of n).

    Data that know the captions of the other processes give them in full; else two of different processes match where the
    texts are the same, which `loss` adds.
    """
    total = sum(map(len, lists))
    if positives.shape[1] == total:
        return positives
    start = sum(len(own) for own in lists[: torch.distributed.get_rank()])
    return F.pad(positives, (start, total - start - positives.shape[1]))
