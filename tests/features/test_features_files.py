"""Features that come from files beside the catalogue: pictures through a real (tiny) CLIP, and the user's arrays."""

import logging

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import tiny_data
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llmrec.features import ItemFeatures


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of transformers with random weights; sentence-transformers loads such a folder by itself."""
    folder = tmp_path_factory.mktemp("clip")
    shared = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = shared | {"vocab_size": 3, "hidden_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = shared | {"hidden_size": 16, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[])
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def shop(tmp_path):
    """Four items with pictures, one of them a copy under another name, and two without."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{name}.png")
    Image.open(tmp_path / "pictures" / "a.png").convert("RGBA").save(tmp_path / "pictures" / "copy.png")
    names = ["a.png", "b.png", "c.png", "copy.png", None, "lost.png"]
    return pa.table({"item_id": list("123456"), "image": names}), tmp_path / "pictures"


def test_pictures_through_a_real_clip(clip, shop, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    items, folder = shop
    spec = [{"kind": "image", "folder": str(folder), "encoder": str(clip)}]
    features = ItemFeatures(spec, tmp_path / "cache").fit(items)
    matrix = features.encode(items)
    assert matrix.shape == (6, 12)
    np.testing.assert_allclose(np.linalg.norm(matrix[:4], axis=1), 1, rtol=1e-5)
    assert (matrix[4:] == 0).all() and "1 pictures of column 'image' do not exist" in caplog.text
    np.testing.assert_allclose(matrix[0], matrix[3], atol=1e-6)  # the same pixels in another file
    assert len(np.unique(matrix[:3].round(4), axis=0)) == 3

    features.save_pretrained(tmp_path / "features")
    caplog.clear()
    loaded = ItemFeatures.from_pretrained(tmp_path / "features", tmp_path / "cache")
    assert (loaded.encode(items) == matrix).all() and "4 of 4 images are in the cache" in caplog.text
    assert (loaded.encode(items.slice(4)) == 0).all()  # pictures for nobody: the width is still known

    before = features.inputs_fingerprint()
    Image.new("RGB", (9, 9), "red").save(folder / "a.png")
    assert features.inputs() == [folder] and features.inputs_fingerprint() != before
    assert (loaded.encode(items)[0] != matrix[0]).any()  # the cache goes by content, not by name


def test_bad_pictures(clip, shop):
    items, folder = shop
    spec = {"kind": "image", "folder": str(folder), "encoder": str(clip)}
    with pytest.raises(ValueError, match="'image': the catalogue has no column 'photo'"):
        ItemFeatures([spec | {"column": "photo"}]).fit(items)
    with pytest.raises(ValueError, match="column 'image' names no file"):
        ItemFeatures([spec]).fit(items.slice(4))
    web = pa.table({"item_id": ["1", "2"], "image": ["a.png", "https://shop.example/a.png"]})
    with pytest.raises(ValueError, match="column 'image', row 1: .* is a URL; download"):
        ItemFeatures([spec]).fit(web)
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="b.png is not a readable picture"):
        ItemFeatures([spec]).fit(items).encode(items)
    with pytest.raises(ValueError, match="(?s)'no/such-clip' cannot be loaded.*kind: precomputed"):
        ItemFeatures([spec | {"encoder": "no/such-clip"}]).fit(items)
    with pytest.raises(ValueError, match="no images"):
        ItemFeatures([spec | {"encoder": "sentence-transformers/all-MiniLM-L6-v2"}]).fit(items)


def test_safetensors_and_arrays_of_more_axes(tmp_path):
    items = tiny_data().items
    sound = torch.randn(24, 3, 2, generator=torch.Generator().manual_seed(0))
    flat = sound.reshape(24, -1).numpy()
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    path = tmp_path / "sound.safetensors"
    save_file({"sound": sound}, path)
    spec = {"kind": "precomputed", "path": str(path)}
    features = ItemFeatures([spec]).fit(items)
    np.testing.assert_allclose(features.encode(items.slice(4, 3)), unit[4:7], rtol=1e-6)
    before = features.inputs_fingerprint()
    save_file({"sound": sound.bfloat16(), "other": torch.zeros(24, 2)}, path)
    assert features.inputs_fingerprint() != before
    with pytest.raises(ValueError, match="several tensors: set tensor to one of other, sound"):
        features.encode(items)
    named = ItemFeatures([spec | {"tensor": "sound"}]).fit(items)
    np.testing.assert_allclose(named.encode(items), unit, atol=0.01)
    with pytest.raises(ValueError, match="kind 'precomputed': .* holds the same row for all 24 training items"):
        ItemFeatures([spec | {"tensor": "other"}]).fit(items)
    with pytest.raises(ValueError, match="no tensor 'voice'"):
        ItemFeatures([spec | {"tensor": "voice"}]).fit(items)

    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="not a readable .safetensors"):
        features.encode(items)
    np.save(tmp_path / "cube.npy", sound.numpy())
    cube = ItemFeatures([{"kind": "precomputed", "path": str(tmp_path / "cube.npy")}]).fit(items)
    np.testing.assert_allclose(cube.encode(items), unit, rtol=1e-6)
    np.save(tmp_path / "cube.npy", np.arange(24.0))
    with pytest.raises(ValueError, match="one row of numbers per item"):
        cube.encode(items)
    with pytest.raises(ValueError, match="none of .npy, .safetensors, .parquet"):
        ItemFeatures([{"kind": "precomputed", "path": "e.csv"}])
    with pytest.raises(ValueError, match="gone.npy does not exist"):
        ItemFeatures([{"kind": "precomputed", "path": str(tmp_path / "gone.npy")}]).inputs_fingerprint()
