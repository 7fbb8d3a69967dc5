"""The caches of a run: exactly what changed is encoded again, and nothing is lost or wrong after an interruption."""

import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from dreamlit.datamodules import cache_tools
from dreamlit.datamodules.cache import (
    Caches,
    ShardStore,
    as_input,
    captions_of,
    fill_captions,
    fill_latents,
    fill_masks,
    fill_texts,
)
from dreamlit.datamodules.captions import draw_caption
from dreamlit.datamodules.config import DatasetSpecs
from dreamlit.datamodules.manifest import build_manifest
from dreamlit.datamodules.masks import at_latent_size
from dreamlit.datamodules.shard_format import scan, shard_paths
from dreamlit.errors import DataError, ModelError

FORK = multiprocessing.get_context("fork")
SIZES = {"a.png": (96, 96), "b.png": (96, 96), "c.png": (64, 128), "d.png": (96, 96), "e.png": (128, 64)}


class FakeEncoders:
    """Exact, instant stand-ins: average pooling for the VAE, a hash for the text encoders; counts what it encodes."""

    stride = 8
    latent_channels = 4

    def __init__(self, vae="vae-1", text="text-1", sleep_s=0.0):
        self.prints = {"vae": vae, "text_encoders": text, "denoiser": "denoiser"}
        self.sleep_s = sleep_s
        self.calls, self.images, self.prompts, self.loaded = [], 0, [], set()

    def fingerprint(self, part):
        return self.prints[part]

    def load(self, *parts, device="cpu"):
        self.calls += [("load", part) for part in parts]
        self.loaded |= set(parts)

    def unload(self, *parts):
        self.calls += [("unload", part) for part in parts]
        self.loaded -= set(parts)

    def encode_pixels(self, pixels):
        assert "vae" in self.loaded and pixels.min() >= -1 and pixels.max() <= 1
        time.sleep(self.sleep_s)
        self.images += len(pixels)
        pooled = torch.nn.functional.avg_pool2d(pixels.double(), 8).float()
        return torch.cat([pooled, pooled[:, :1] * len(self.prints["vae"])], dim=1)

    def encode_prompts(self, prompts):
        assert "text_encoders" in self.loaded
        self.prompts += prompts
        seeds = [
            int.from_bytes(hashlib.sha256((self.prints["text_encoders"] + p).encode()).digest()[:6]) for p in prompts
        ]
        embeds = torch.stack([torch.randn(7, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return {"prompt_embeds": embeds, "pooled": embeds.mean(dim=1)}


class Folder:
    """A dataset of small generated photos and masks, and runs over it."""

    def __init__(self, root):
        self.root = root
        self.entry = {
            "id": "subject",
            "resolution": 64,
            "caption_strategy": "textfile",
        }
        for number, (name, (height, width)) in enumerate(SIZES.items()):
            self.paint(name, number, height, width)
            self.caption(name, f"caption {number // 2}")
            self.mask(name, number)

    def paint(self, name, seed, height, width):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.save("photos", name, pixels)

    def mask(self, name, seed):
        height, width = SIZES[name]
        self.save("masks", name, np.random.default_rng(100 + seed).integers(0, 256, (height, width), dtype=np.uint8))

    def save(self, folder, name, pixels):
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # stored, not deflated: every picture of a size has the same number of bytes
        Image.fromarray(pixels).save(path, compress_level=0)

    def caption(self, name, text):
        (self.root / "photos" / name).with_suffix(".txt").write_text(text)

    def manifest(self, **changes):
        entry = {**self.entry, "instance_data_dir": str(self.root / "photos"), "conditioning_data": "masks", **changes}
        masks = {"id": "masks", "dataset_type": "conditioning", "instance_data_dir": str(self.root / "masks")}
        return build_manifest(DatasetSpecs([entry, masks]), 32, 0, progress=False)

    def run(self, encoders=None, cache="cache", batch_size=2, **changes):
        """Fills all caches; what was encoded as (latents, masks, captions)."""
        encoders = encoders or FakeEncoders()
        manifest = self.manifest(**changes)
        caches = Caches(self.root / cache, manifest.specs, encoders)
        return fill_all(caches, manifest, encoders, batch_size)


def fill_all(caches, manifest, encoders, batch_size=2):
    reports = (
        fill_latents(caches, manifest, encoders, batch_size=batch_size, progress=False),
        fill_masks(caches, manifest, progress=False),
        fill_texts(caches, manifest, encoders, batch_size=batch_size, progress=False),
    )
    return tuple(report.encoded for report in reports)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def content(root):
    stores = [ShardStore(path) for path in (root / "latents", root / "text")]
    return {key: {n: t.tolist() for n, t in store.get(key).items()} for store in stores for key in sorted(store.keys())}


# --- what is read --------------------------------------------------------------------------------------------------


def test_what_is_read_is_what_the_encoders_make_of_each_sample_alone(folder):
    manifest, encoders = folder.manifest(), FakeEncoders()
    caches = Caches(folder.root / "cache", manifest.specs, encoders)
    assert fill_all(caches, manifest, encoders, batch_size=3) == (5, 5, 3)
    encoders.load("vae", "text_encoders")
    caches = pickle.loads(pickle.dumps(caches))
    for sample in manifest.samples:
        alone = encoders.encode_pixels(as_input(manifest.pixels(sample))[None])[0]
        assert torch.equal(caches.latent(sample), alone)
        mask = at_latent_size(manifest.mask(sample), sample.geometry, 8)
        assert torch.equal(caches.mask(sample), torch.from_numpy(mask)[None])
        text = encoders.encode_prompts([sample.captions[0]])
        cached = caches.text(sample.captions[0], sample.dataset_id)
        assert cached.keys() == text.keys() and all(torch.equal(cached[name], text[name][0]) for name in text)


def test_pixels_reach_the_encoder_in_minus_one_to_one():
    pixels = np.array([[[0, 51, 255]]], dtype=np.uint8)
    assert as_input(pixels).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])


def test_every_caption_that_can_be_drawn_is_cached(folder):
    folder.caption("a.png", "sks dog, on grass, at noon, blue sky\nanother line, with tags, and more")
    changes = {"caption_shuffle": {"enable": True, "count": 3}, "caption_dropout": 0.3}
    manifest, encoders = folder.manifest(**changes), FakeEncoders()
    caches = Caches(folder.root / "cache", manifest.specs, encoders)
    fill_texts(caches, manifest, encoders, seed=5, progress=False)
    spec = manifest.specs[0]
    drawn = {draw_caption(s.captions, spec, 5, s.id, visit) for s in manifest.samples for visit in range(60)}
    assert len(drawn) > 6 and "" in drawn
    assert sorted(encoders.prompts) == sorted(set(captions_of(manifest, 5))) and drawn <= set(encoders.prompts)
    for caption in drawn:
        caches.text(caption)


def test_a_caption_shared_by_images_is_encoded_once(folder):
    encoders = FakeEncoders()
    folder.run(encoders)
    assert sorted(encoders.prompts) == ["caption 0", "caption 1", "caption 2"]


def test_evaluation_images_are_cached_too(folder):
    manifest = folder.manifest()
    manifest.eval_samples = [manifest.samples.pop()]
    caches = Caches(folder.root / "cache", manifest.specs, encoders := FakeEncoders())
    assert fill_all(caches, manifest, encoders) == (5, 5, 3)
    caches.latent(manifest.eval_samples[0])


def test_an_entry_that_is_not_there_names_the_sample_and_the_mend(folder):
    manifest = folder.manifest()
    caches = Caches(folder.root / "cache", manifest.specs, FakeEncoders())
    for read, name in [
        (lambda: caches.latent(manifest.samples[0]), "subject/a.png"),
        (lambda: caches.mask(manifest.samples[1]), "subject/b.png"),
        (lambda: caches.text("a caption", "subject"), "a caption"),
    ]:
        with pytest.raises(DataError, match=rf"{name}.* `dreamlit prepare`"):
            read()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_latents_can_be_stored_in_half_precision_under_their_own_keys(folder, dtype):
    manifest, encoders = folder.manifest(), FakeEncoders()
    full = Caches(folder.root / "cache", manifest.specs, encoders)
    half = Caches(folder.root / "cache", manifest.specs, encoders, dtype=dtype)
    for caches in (full, half):
        assert fill_latents(caches, manifest, encoders, progress=False).encoded == 5
    sample = manifest.samples[0]
    assert torch.equal(half.latent(sample), full.latent(sample).to(getattr(torch, dtype)).float())
    with pytest.raises(DataError, match="int8"):
        Caches(folder.root, manifest.specs, encoders, dtype="int8")


def test_datasets_name_their_own_folders_and_may_share_one(folder):
    manifest, encoders = folder.manifest(cache_dir_vae=str(folder.root / "own")), FakeEncoders()
    text = {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": str(folder.root / "own")}
    specs = DatasetSpecs([*manifest.specs, text])
    caches = Caches(folder.root / "cache", specs, encoders)
    assert len(caches.stores()) == 1
    fill_all(caches, manifest, encoders)
    assert not (folder.root / "cache").exists() and len(caches.text_store.keys()) == 13
    caches.latent(manifest.samples[0])
    caches.text("caption 0")


# --- what is encoded again -----------------------------------------------------------------------------------------


def change_pixels(folder):
    path = folder.root / "photos" / "b.png"
    before = path.stat()
    folder.paint("b.png", 77, *SIZES["b.png"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def touch_everything(folder):
    for path in folder.root.rglob("*.*"):
        if path.is_file():
            os.utime(path, (1, 1))


def rename_a_photo(folder):
    for suffix in ("png", "txt"):
        (folder.root / "photos" / f"a.{suffix}").rename(folder.root / "photos" / f"z.{suffix}")
    (folder.root / "masks" / "a.png").rename(folder.root / "masks" / "z.png")


@pytest.mark.parametrize(
    ("change", "options", "encoders", "again"),
    [
        (None, {}, {}, (0, 0, 0)),
        (touch_everything, {}, {}, (0, 0, 0)),
        (rename_a_photo, {}, {}, (0, 0, 0)),
        (change_pixels, {}, {}, (1, 0, 0)),
        (lambda f: f.caption("a.png", "new words"), {}, {}, (0, 0, 1)),
        (lambda f: f.caption("e.png", "caption 1"), {}, {}, (0, 0, 0)),
        (lambda f: f.mask("c.png", 55), {}, {}, (0, 1, 0)),
        (None, {"resolution": 96}, {}, (5, 5, 0)),
        # the three square photos are cut to the same square either way; the two oblong ones are not
        (None, {"crop": True}, {}, (2, 2, 0)),
        (None, {"crop": True, "crop_style": "corner"}, {}, (2, 2, 0)),
        (None, {"repeats": 7, "probability": 0.5}, {}, (0, 0, 0)),
        (None, {"id": "renamed"}, {}, (0, 0, 0)),
        (None, {}, {"vae": "vae-22"}, (5, 0, 0)),
        (None, {}, {"text": "text-2"}, (0, 0, 3)),
    ],
)
def test_exactly_what_depends_on_a_change_is_encoded_again(folder, change, options, encoders, again):
    assert folder.run() == (5, 5, 3)
    if change is not None:
        change(folder)
    assert folder.run(FakeEncoders(**encoders), **options) == again
    assert folder.run(FakeEncoders(**encoders), **options) == (0, 0, 0)
    if change is None:
        assert folder.run() == (0, 0, 0)  # what was there before is still there


def test_alpha_policy_matters_only_to_photos_with_alpha(folder):
    pixels = np.random.default_rng(1).integers(0, 256, (96, 96, 4), dtype=np.uint8)
    folder.save("photos", "a.png", pixels)
    folder.run()
    assert folder.run(alpha="black") == (1, 0, 0)


def test_the_same_photos_at_two_resolutions_share_a_folder_without_mixing(folder):
    assert folder.run(resolution=64) == (5, 5, 3)
    assert folder.run(resolution=96) == (5, 5, 0)
    assert folder.run(resolution=64) == (0, 0, 0)


def test_two_equal_photos_are_encoded_once(folder):
    shutil.copy(folder.root / "photos" / "a.png", folder.root / "photos" / "copy.png")
    shutil.copy(folder.root / "masks" / "a.png", folder.root / "masks" / "copy.png")
    folder.caption("copy.png", "caption 0")
    encoders = FakeEncoders()
    assert folder.run(encoders) == (5, 5, 3) and encoders.images == 5


def test_nothing_is_written_into_the_dataset_folders(folder):
    before = {path: path.stat() for name in ("photos", "masks") for path in (folder.root / name).rglob("*")}
    folder.run()
    after = {path: path.stat() for name in ("photos", "masks") for path in (folder.root / name).rglob("*")}
    assert {p: (s.st_size, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_size, s.st_mtime_ns) for p, s in before.items()
    }


# --- the model -----------------------------------------------------------------------------------------------------


def test_encoders_load_only_when_needed_and_are_freed(folder):
    encoders = FakeEncoders()
    folder.run(encoders)
    expected = [(verb, part) for part in ("vae", "text_encoders") for verb in ("load", "unload")]
    assert encoders.calls == expected
    idle = FakeEncoders()
    folder.run(idle)
    assert idle.calls == []


def test_encoders_are_freed_after_an_exception(folder):
    class Broken(FakeEncoders):
        def encode_pixels(self, pixels):
            raise RuntimeError("broken")

    encoders = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        folder.run(encoders)
    assert encoders.loaded == set()


class SmallMemory(FakeEncoders):
    """Runs out of memory for batches above `room`."""

    room = 1
    error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def encode_pixels(self, pixels):
        self.calls.append(len(pixels))
        if len(pixels) > self.room:
            raise self.error
        return super().encode_pixels(pixels)


@pytest.mark.parametrize(
    "error",
    [
        SmallMemory.error,
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_a_batch_too_large_for_memory_is_halved_for_good(folder, error):
    for number in range(5):  # with the three square ones: eight of a size
        shutil.copy(folder.root / "masks" / "a.png", folder.root / "masks" / f"more{number}.png")
        folder.paint(f"more{number}.png", 300 + number, 96, 96)
        folder.caption(f"more{number}.png", "caption 0")
    encoders = SmallMemory()
    encoders.room, encoders.error = 2, error
    assert folder.run(encoders, batch_size=4) == (10, 5, 3)
    assert sorted(call for call in encoders.calls if isinstance(call, int)) == [1, 1, 2, 2, 2, 2, 4]
    folder.run(FakeEncoders(), cache="plain", batch_size=1)
    assert content(folder.root / "cache") == content(folder.root / "plain")


def test_an_image_too_large_for_memory_is_named(folder):
    encoders = SmallMemory()
    encoders.room = 0
    with pytest.raises(DataError, match=r"subject/[a-e]\.png.*memory") as caught:
        folder.run(encoders, batch_size=4)
    assert "resolution" in str(caught.value) and encoders.loaded == set()


def test_another_runtime_error_is_not_taken_for_a_full_memory(folder):
    class Odd(FakeEncoders):
        def encode_pixels(self, pixels):
            self.calls.append(len(pixels))
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        folder.run(encoders := Odd(), batch_size=4)
    assert [call for call in encoders.calls if isinstance(call, int)] == [3]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_all_named_and_never_cached(folder, value):
    class Overflowing(FakeEncoders):
        def encode_pixels(self, pixels):
            latents = super().encode_pixels(pixels)
            return torch.where(torch.tensor(pixels.shape[-1] != pixels.shape[-2]), value, latents)

    with pytest.raises(DataError, match="not finite") as caught:
        folder.run(Overflowing())
    oblong = {s.id for s in folder.manifest().samples if s.bucket[0] != s.bucket[1]}
    assert len(oblong) == 2 and all(name in str(caught.value) for name in oblong)
    assert "subject/a.png" not in str(caught.value)
    assert folder.run() == (2, 5, 3)


def test_a_text_embedding_that_is_not_finite_names_the_caption(folder):
    class Overflowing(FakeEncoders):
        def encode_prompts(self, prompts):
            return {"prompt_embeds": torch.full((len(prompts), 2), float("nan"))}

    with pytest.raises(DataError, match="caption 1"):
        folder.run(Overflowing())


def test_an_error_of_the_model_names_the_images_it_was_given(folder):
    class Refusing(FakeEncoders):
        def encode_pixels(self, pixels):
            raise ModelError("no")

    with pytest.raises(ModelError, match=r"subject/a\.png, subject/b\.png: no"):
        folder.run(Refusing())


@pytest.mark.parametrize("method", ["encode_pixels", "encode_prompts"])
def test_encoders_that_give_another_shape_are_refused(folder, method):
    class Odd(FakeEncoders):
        def encode_pixels(self, pixels):
            latents = super().encode_pixels(pixels)
            return latents[:, :3] if method == "encode_pixels" else latents

        def encode_prompts(self, prompts):
            return (
                {"prompt_embeds": torch.zeros(5, 2)} if method == "encode_prompts" else super().encode_prompts(prompts)
            )

    with pytest.raises(ModelError, match="shape"):
        folder.run(Odd())


def test_a_photo_that_changes_during_the_fill_is_never_cached_under_its_old_content(folder):
    manifest = folder.manifest()
    caches = Caches(folder.root / "cache", manifest.specs, encoders := FakeEncoders())
    folder.paint("b.png", 99, 96, 96)
    with pytest.raises(DataError, match=r"b\.png"):
        fill_latents(caches, manifest, encoders, progress=False)
    changed = next(sample for sample in manifest.samples if sample.name == "b.png")
    assert caches.latent_key(changed) not in caches.latent_store("subject") and encoders.loaded == set()


def test_the_progress_bar_writes_to_stderr_alone(folder, capfd):
    manifest = folder.manifest()
    caches = Caches(folder.root / "cache", manifest.specs, encoders := FakeEncoders())
    report = fill_latents(caches, manifest, encoders)
    out, err = capfd.readouterr()
    assert out == "" and "5/5" in err
    assert str(report).startswith("latents: 5 encoded, 0 found in the cache")


# --- interruption, damage, company -------------------------------------------------------------------------------


def fill_slowly(folder, manifest, started):
    encoders = FakeEncoders(sleep_s=0.01)
    caches = Caches(folder.root / "killed", manifest.specs, encoders)
    started.set()
    fill_all(caches, manifest, encoders, batch_size=1)


def test_kill_nine_during_a_fill_ten_times_ends_like_an_undisturbed_fill(folder):
    for number in range(30):
        folder.paint(f"more{number}.png", 200 + number, 96, 96)
        folder.caption(f"more{number}.png", f"words {number}")
        shutil.copy(folder.root / "masks" / "a.png", folder.root / "masks" / f"more{number}.png")
    manifest, rng = folder.manifest(), random.Random(3)
    kills = 0
    for _ in range(10):
        started = FORK.Event()
        process = FORK.Process(target=fill_slowly, args=(folder, manifest, started))
        process.start()
        assert started.wait(30)
        time.sleep(rng.uniform(0.005, 0.08))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills == 10
    left = folder.run(cache="killed")
    assert folder.run(cache="undisturbed") == (35, 5, 33) and left < (35, 5, 33)
    assert content(folder.root / "killed") == content(folder.root / "undisturbed")
    assert cache_tools.verify(folder.root / "killed" / "latents").ok


def test_two_processes_that_fill_one_folder_at_once_end_like_one(folder):
    manifest = folder.manifest()
    events = [FORK.Event(), FORK.Event()]
    processes = [FORK.Process(target=fill_slowly, args=(folder, manifest, event)) for event in events]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert folder.run(cache="killed") == (0, 0, 0)
    folder.run(cache="undisturbed")
    assert content(folder.root / "killed") == content(folder.root / "undisturbed")


def test_what_was_encoded_before_an_interruption_is_kept(folder):
    class Interrupted(FakeEncoders):
        def encode_pixels(self, pixels):
            if self.images == 3:
                raise KeyboardInterrupt
            return super().encode_pixels(pixels)

    with pytest.raises(KeyboardInterrupt):
        folder.run(Interrupted(), batch_size=1)
    assert folder.run() == (2, 5, 3)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_found_and_only_its_losses_are_rebuilt(folder, damage):
    folder.run()
    whole = content(folder.root / "cache")
    shard = next(path for path in shard_paths(folder.root / "cache" / "latents") if len(scan(path)) == 5)
    entry = max(scan(shard).values())
    if damage == "flip":
        data = bytearray(shard.read_bytes())
        data[entry.offset + entry.size - 3] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        os.truncate(shard, entry.offset + 20)
    else:
        shard.unlink()
    assert sum(folder.run()) == (5 if damage == "remove" else 1)
    assert content(folder.root / "cache") == whole


def test_gc_keeps_what_the_configuration_uses_and_removes_the_rest(folder):
    folder.run(resolution=96)
    folder.run()
    manifest, encoders = folder.manifest(), FakeEncoders()
    caches = Caches(folder.root / "cache", manifest.specs, encoders)
    keep = caches.keys(manifest, seed=0)
    listed = cache_tools.gc(folder.root / "cache" / "latents", keep, dry_run=True)
    assert (listed.kept, len(listed.removed)) == (10, 10) and "would be removed" in str(listed)
    assert folder.run(resolution=96) == (0, 0, 0)
    for store in caches.stores():
        cache_tools.gc(store.folder, keep)
    assert folder.run() == (0, 0, 0)
    assert folder.run(resolution=96) == (5, 5, 0)


def test_captions_outside_the_manifest_can_be_cached(folder):
    manifest, encoders = folder.manifest(), FakeEncoders()
    caches = Caches(folder.root / "cache", manifest.specs, encoders)
    assert fill_captions(caches, ["a preview", "a preview", ""], encoders, progress=False).encoded == 2
    caches.text("a preview")


def test_the_key_of_a_latent_does_not_depend_on_names_captions_or_the_mask(folder):
    manifest = folder.manifest()
    caches = Caches(folder.root / "cache", manifest.specs, FakeEncoders())
    sample = manifest.samples[0]
    other = dataclasses.replace(sample, id="x/y", dataset_id="x", name="y", captions=("z",), mask=None)
    assert caches.latent_key(other) == caches.latent_key(sample)
