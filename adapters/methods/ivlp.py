"""IVLP: independent prompts in the layers of both towers (Khattak et al. 2023, arXiv 2210.03117 and 2307.06948)."""

from __future__ import annotations

from dataclasses import dataclass

from ..prompt_towers import TowerPrompts, TowersConfig


@dataclass
class Config(TowersConfig):
    """Settings of IVLP; the defaults are the MaPLe paper's.

    Attributes:
        text_length: text prompt tokens in every prompted layer.
        image_length: the same in the image tower; 0 leaves that tower alone (deep language prompting).
        text_depth: text layers that get prompts of their own, counted from the first. A number, a fraction of the
            tower, "all", or None for the paper's 12, cut to a smaller tower.
        image_depth: the same in the image tower.
        init: words whose first tokens start the text prompts of layer 0; the other words stay in the sentence.
            None, or fewer words than prompts: N(0, 0.02^2).
    """


class IVLP(TowerPrompts):
    """Prompts behind the patches and before the class text, without coupling between the towers.

    Learnable: `text_vectors` (text depth, n, text width) and `image_vectors` (image depth, n, vision width).
    """
