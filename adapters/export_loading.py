"""The code on a card that loads an export, for each kind of it. The tests run it as it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .backbone_spec import FOLDER, TINY

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec

CLASSIFIER = """from limpet import Classifier

classifier = Classifier.load("{folder}")
for answer in classifier.predict(["photo.jpg"]):
    print(answer.label, answer.probability, answer.error)
"""
RANKER = """from limpet.ranker import Ranker

ranker = Ranker.load("{folder}")
for answer in ranker.rank(["photo.jpg"]):
    print(answer.rank, answer.path, answer.score, answer.error)
"""
REGIONS = """from limpet import artifact

adapter = artifact.load("{folder}")
print(adapter.task, adapter.config)  # limpet predict {folder} BOXES.csv (path, caption, x0, y0, x1, y1) answers
"""
ANOMALY = """import torch
from limpet import artifact
from PIL import Image

adapter = artifact.load("{folder}")
transform = adapter.backbone.transform(resize_mode="squash")
with torch.inference_mode():
    scores, maps = adapter.anomaly({{"image": transform(Image.open("photo.jpg"))[None]}})
print(float(scores[0]), maps[0])  # the greater, the more anomalous; a value a patch
"""
_CODE = {"classification": CLASSIFIER, "ordering": RANKER, "referring": REGIONS, "anomaly": ANOMALY}
_SHOW = """logits -= logits.max(1, keepdims=True)
probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
print(table["names"][probabilities[0].argmax()], probabilities[0].max())
"""
_TABLE = """table = np.load("classes.npz")
logits = table["scale"] * features @ table["weights"].T + table["bias"]
"""


def limpet(task: str, folder: str = ".") -> str:
    """Load an adapter with Limpet."""
    return _CODE.get(task, CLASSIFIER).format(folder=folder)


def onnx(spec: BackboneSpec, beside: bool) -> str:
    """ONNX Runtime, NumPy and Pillow alone."""
    head = "import json\n\nimport numpy as np\nimport onnxruntime\nfrom PIL import Image, ImageOps\n\n" + preparing(spec.preprocessing)
    session = '\nsession = onnxruntime.InferenceSession("model.onnx")\nimages = np.stack([prepare("photo.jpg")])\n'
    if beside:
        return f'{head}{session}(features,) = session.run(None, {{"images": images}})\n{_TABLE}{_SHOW}'
    names = 'table = {"names": json.loads(session.get_modelmeta().custom_metadata_map["limpet"])["classes"]}\n'
    return f'{head}{session}{names}(logits,) = session.run(["logits"], {{"images": images}})\n{_SHOW}'


def merged() -> str:
    """open_clip alone."""
    return f"""import numpy as np
import open_clip
import torch
from PIL import Image

model, _, prepare = open_clip.create_model_and_transforms("local-dir:.")
model.eval()
images = torch.stack([prepare(Image.open("photo.jpg").convert("RGB"))])
with torch.no_grad():
    features = model.encode_image(images, normalize=True).numpy()
{_TABLE}{_SHOW}"""


def weights(spec: BackboneSpec, plain: bool, unit: bool) -> str:
    """The backbone by open_clip (limpet-tiny by Limpet); a changed tower by its ONNX file."""
    if not plain:
        head = "import numpy as np\nimport onnxruntime\nfrom PIL import Image, ImageOps\n\n" + preparing(spec.preprocessing)
        return (
            f'{head}\n# limpet export RUN --to onnx --beside writes this file\nsession = onnxruntime.InferenceSession("model.onnx")\n'
            f'(features,) = session.run(None, {{"images": np.stack([prepare("photo.jpg")])}})\n{_TABLE}{_SHOW}'
        )
    opening = "import numpy as np\nimport torch\nfrom PIL import Image\n"
    if not _known_to_open_clip(spec):
        return f"""{opening}from limpet import FrozenClip

{_limpet(spec)}
prepare = backbone.transform()
images = torch.stack([prepare(Image.open("photo.jpg").convert("RGB"))])
features = backbone.encode_image(images, normalize={unit}).numpy()
{_TABLE}{_SHOW}"""
    return f"""{opening}import open_clip

{_open_clip(spec)}
model.eval()
images = torch.stack([prepare(Image.open("photo.jpg").convert("RGB"))])
with torch.no_grad():
    features = model.encode_image(images, normalize={unit}).numpy()
{_TABLE}{_SHOW}"""


def weights_packages(spec: BackboneSpec, plain: bool) -> tuple[str, ...]:
    """Distributions that `weights` needs."""
    return ("onnxruntime", "pillow") if not plain else ("open_clip_torch",) if _known_to_open_clip(spec) else ("limpet",)


def peft_huggingface(spec: BackboneSpec, base: str) -> str:
    """Hugging Face's CLIPModel and peft."""
    return f"""import numpy as np
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from transformers import CLIPModel

{preparing(spec.preprocessing)}
model = PeftModel.from_pretrained(CLIPModel.from_pretrained({base!r}), ".").eval()
images = torch.from_numpy(np.stack([prepare("photo.jpg")]))
with torch.no_grad():
    features = model.get_image_features(pixel_values=images)
features = getattr(features, "pooler_output", features)  # transformers 5 wraps the tensor
features = torch.nn.functional.normalize(features, dim=-1).numpy()
{_TABLE}{_SHOW}"""


def peft_open_clip(spec: BackboneSpec) -> str:
    """Peft on open_clip's model; its attention is split by Limpet."""
    return f"""import json

import numpy as np
import torch
from limpet import FrozenClip
from limpet.split_attention import split
from peft import PeftModel
from PIL import Image

{_limpet(spec)}
model = backbone.editable(()).model
for name in json.load(open("export.json"))["split"]:
    split(model.get_submodule(name))
model = PeftModel.from_pretrained(model, ".").base_model.model.eval()
images = torch.stack([backbone.transform()(Image.open("photo.jpg").convert("RGB"))])
with torch.no_grad():
    features = torch.nn.functional.normalize(model.encode_image(images), dim=-1).numpy()
{_TABLE}{_SHOW}"""


def preparing(preprocessing: dict[str, Any]) -> str:
    """A function `prepare` in Pillow and NumPy that does what the backbone's preprocessing does to a picture."""
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    kind = "BILINEAR" if preprocessing["interpolation"] == "bilinear" else "BICUBIC"
    mode = preprocessing["resize_mode"]
    if mode == "squash":
        fit = f"    image = image.resize(({width}, {height}), Image.{kind})\n"
    else:
        if height == width and mode == "shortest":  # torchvision cuts off the fraction of a pixel here
            fit = "    short = min(image.size)\n"
            scaled = f"int({width} * image.width / short), int({width} * image.height / short)"
        else:
            side = "max" if mode == "longest" else "min"
            fit = f"    ratio = {side}(image.width / {width}, image.height / {height})\n"
            scaled = "max(1, round(image.width / ratio)), max(1, round(image.height / ratio))"
            kind = kind if mode == "longest" else "BICUBIC"  # as open_clip scales to sizes that are not square
        fit += f"    image = image.resize(({scaled}), Image.{kind})\n"
        fit += (
            f"    left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)\n"
            if mode == "shortest"
            else f"    left, top = -(({width} - image.width) // 2), -(({height} - image.height) // 2)\n"
        )
        if mode == "longest":
            fill = preprocessing["fill"]
            fit += f'    canvas = Image.new("RGB", ({width}, {height}), ({fill}, {fill}, {fill}))\n'
            fit += "    canvas.paste(image, (-left, -top))\n    image = canvas\n"
        else:
            fit += f"    image = image.crop((left, top, left + {width}, top + {height}))\n"
    mean, std = ([float(v) for v in preprocessing[key]] for key in ("mean", "std"))
    return f'''
def prepare(path):
    """A picture as network input (3, {height}, {width})."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
{fit}    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = (pixels - np.float32({mean})) / np.float32({std})
    return pixels.transpose(2, 0, 1)

'''


def _known_to_open_clip(spec: BackboneSpec) -> bool:
    return spec.name != TINY and not spec.name.startswith(FOLDER) and spec.pretrained != "random" and not spec.architecture


def _open_clip(spec: BackboneSpec) -> str:
    if spec.name.startswith("hf-hub:"):
        return f"model, _, prepare = open_clip.create_model_and_transforms({spec.name!r})"
    quick = ", force_quick_gelu=True" if spec.activation == "quick_gelu" else ""
    name = spec.name.replace("/", "-")
    return f"model, _, prepare = open_clip.create_model_and_transforms({name!r}, pretrained={spec.pretrained!r}{quick})"


def _limpet(spec: BackboneSpec) -> str:
    """Load the backbone with Limpet."""
    if spec.pretrained is None:
        return f"backbone = FrozenClip.load({spec.name!r})"
    keys: dict[str, object] = {"name": spec.name, "pretrained": spec.pretrained, "activation": spec.activation, "precision": "fp32"}
    keys |= {"architecture": spec.architecture} if spec.architecture else {}
    given = ", ".join(f"{key}={value!r}" for key, value in keys.items())
    return f"from types import SimpleNamespace\n\nbackbone = FrozenClip.load(SimpleNamespace({given}))"
