"""The torch data set of pairs: what stands beside a picture is what `plumb train` gives the denoiser beside it."""

import dataclasses
import unittest

import plumb
import torch
from diffusers import Flux2KleinPipeline, FluxKontextPipeline, FluxTransformer2DModel
from PIL import Image
from plumb._manifest import _manifest
from plumb.data import BucketBatches
from safetensors.torch import load_file
from support import ROOT, World, pixels, write_klein
from torch.utils.data import DataLoader


def pairs(test, family="flux1", flavor="kontext", dataset="", **sections):
    """Three pictures, each beside one of another shape, not yet encoded."""
    world = World(test, family, flavor=flavor, dataset=f'references = "references"\n{dataset}', **sections)
    (world.folder / "references").mkdir()
    for number in range(3):
        picture = Image.fromarray(pixels(80, 64 + 16 * number, (90, 60 * number, 30)))
        picture.save(world.folder / "references" / f"p{number}.png")
    return world


def klein(test, **sections):
    world = pairs(test, "flux2", "klein-base-4b", path="klein", **sections)
    write_klein(world.folder / "klein")
    return world


def packed(latents):
    """Patches of 2x2, row by row."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def steps(world, count=3):
    """What each of the first steps saw."""
    for step in range(1, count + 1):
        out = world.folder / f"step-{step}.safetensors"
        world.run("train", "exp.toml", "--restart", "--dump-step", step, out)
        yield load_file(out)


class Pairs(unittest.TestCase):
    def test_what_stands_beside_is_bit_for_bit_what_training_gives(self):
        for make in (pairs, klein):
            # Each picture and what stands beside it also mirrored, both or none.
            world = make(self, dataset="flip = true", train="batch_size = 1")
            world.encode()
            pictures = plumb.dataset(world.exp)
            self.assertEqual([picture.reference.file[-6:-4] for picture in pictures.pictures], ["p0", "p1", "p2"])
            views = [[pictures[number] for _ in range(24)] for number in range(3)]
            seen = {
                (sample["context"].numpy().tobytes(), sample["reference"].numpy().tobytes()): sample["latents"].numpy().tobytes()
                for samples in views
                for sample in samples
            }
            self.assertEqual(len(seen), 6)
            for step in steps(world, 2):
                names = ("context", "reference")
                latents = seen[tuple(step[name][0].numpy().tobytes() for name in names)]
                if pictures.recipe.patch is not None:
                    # Nothing is drawn: so the two are of one view, too.
                    self.assertEqual(latents, step["latents"][0].numpy().tobytes())

    def test_positions_are_those_of_diffusers(self):
        world = pairs(self)
        world.encode()
        for sample in plumb.dataset(world.exp):
            _, h, w = sample["reference"].shape
            expected = FluxKontextPipeline._prepare_latent_image_ids(1, h // 2, w // 2, "cpu", torch.float32)
            expected[..., 0] = 1
            self.assertTrue(torch.equal(sample["reference_ids"], expected))
        world = klein(self)
        world.encode()
        for sample in plumb.dataset(world.exp):
            c, h, w = sample["reference"].shape
            expected = Flux2KleinPipeline._prepare_image_ids([torch.zeros(1, c, h // 2, w // 2)])[0]
            self.assertTrue(torch.equal(sample["reference_ids"], expected.float()))

    def test_diffusers_predicts_from_a_sample_what_training_predicted(self):
        world = pairs(self, train="batch_size = 1")
        world.encode()
        samples = {sample["context"].numpy().tobytes(): sample for sample in plumb.dataset(world.exp)}
        transformer = FluxTransformer2DModel.from_pretrained(ROOT / "assets/tiny-flux", subfolder="transformer")
        for step in steps(world, 1):
            sample = samples[step["context"][0].numpy().tobytes()]
            noisy = step["noisy_latents"]
            _, _, h, w = noisy.shape
            ids = FluxKontextPipeline._prepare_latent_image_ids(1, h // 2, w // 2, "cpu", torch.float32)
            with torch.no_grad():
                predicted = transformer(
                    hidden_states=torch.cat([packed(noisy), packed(sample["reference"][None])], 1),
                    img_ids=torch.cat([ids, sample["reference_ids"]]),
                    encoder_hidden_states=sample["context"][None],
                    txt_ids=torch.zeros(len(sample["context"]), 3),
                    pooled_projections=sample["pooled"][None],
                    timestep=step["timestep"] / 1000,
                    guidance=step["guidance"],
                    return_dict=False,
                )[0]
            wanted = packed(step["prediction"])
            torch.testing.assert_close(predicted[:, : wanted.shape[1]], wanted, rtol=1e-4, atol=1e-4)

    def test_batches_are_of_pictures_beside_references_of_one_size_or_none(self):
        world = klein(self)
        # Of one size, the references of three sizes; and one picture that stands alone.
        (world.folder / "alone").mkdir()
        for folder, number in (("pictures", 1), ("pictures", 2), ("alone", 0)):
            picture = world.folder / folder / f"p{number}.png"
            Image.fromarray(pixels(64, 64, (40 * number, 20, 99))).save(picture)
            picture.with_suffix(".txt").write_text(f"a red circle number {number}, {folder}")
        text = world.exp.read_text().replace('references = "references"', 'references = "references"\nreference_size = "preferred"')
        world.exp.write_text(text.replace("[adapter]", '[[dataset]]\npath = "alone"\nresolution = 64\nbucket_step = 16\n\n[adapter]'))
        world.encode()
        pictures = plumb.dataset(world.exp)
        sizes = {pictures.reference_size(number) for number in range(len(pictures))}
        self.assertEqual(sizes, {(80, 64), (80, 80), (80, 96), None})
        batches = list(DataLoader(pictures, batch_sampler=BucketBatches(pictures, 4)))
        self.assertEqual(len(batches), 4)
        self.assertEqual(sum("reference" in batch for batch in batches), 3)
        for batch in batches:
            if "reference" in batch:
                self.assertEqual(batch["reference_ids"].shape[1], batch["reference"][0, 0].numel() // 4)

    def test_a_manifest_has_the_references_of_pictures_and_of_previews(self):
        world = pairs(self, train='[sample]\nprompts = ["a blue square"]\nreferences = ["references/p2.png"]')
        world.encode()
        world.run("inspect", "manifest", "exp.toml", "--out", "exp.json")
        manifest = plumb.Manifest.open(world.folder / "exp.json")
        self.assertEqual(manifest, plumb.Manifest.of(world.exp))
        (preview,) = manifest.preview_references
        self.assertEqual(preview.digest, manifest.pictures[2].reference.digest)
        latents = plumb.Store(world.store).latents(manifest.recipe.latents, preview.views[0].entry)
        self.assertEqual(latents.mean.shape[0], manifest.recipe.latent_channels)

    def test_a_missing_reference_is_refused(self):
        world = pairs(self)
        world.encode()
        manifest = plumb.Manifest.of(world.exp)
        first = manifest.pictures[0]
        views = tuple(dataclasses.replace(view, entry="0" * 64) for view in first.reference.views)
        other = dataclasses.replace(first, reference=dataclasses.replace(first.reference, views=views))
        with self.assertRaisesRegex(plumb.Refused, r"(?s)1 of 6 entries is missing.*references/p0\.png"):
            plumb.dataset(dataclasses.replace(manifest, pictures=(other, *manifest.pictures[1:])))
        # As `plumb train` refuses it: a reference that was not there when the others were encoded.
        (world.folder / "references" / "p1.png").write_bytes((world.folder / "pictures" / "p0.png").read_bytes())
        with self.assertRaises(plumb.Refused) as caught:
            plumb.dataset(world.exp)
        self.assertEqual(str(caught.exception).strip(), world.refusal())

    def test_a_reference_without_a_view_for_each_of_the_pictures_is_damage(self):
        world = pairs(self)
        world.encode()
        from plumb import _program

        members = _program.ask("inspect", "manifest", str(world.exp))
        _manifest(members, "exp.json")
        members["pictures"][1]["reference"]["views"] *= 2
        with self.assertRaisesRegex(plumb.Damaged, "reference: field `views`: expected as many as the picture has, 1, found `2`"):
            _manifest(members, "exp.json")


if __name__ == "__main__":
    unittest.main()
