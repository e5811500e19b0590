"""The torch data set: what a sample is, how it is drawn, and what it refuses."""

import dataclasses
import pickle
import unittest

import numpy as np
import plumb
import torch
from plumb.data import BucketBatches
from safetensors import safe_open
from safetensors.torch import load_file
from support import World
from torch.utils.data import DataLoader


def encoded(test, family="sd3", variant="diffusers", **sections):
    world = World(test, family, variant, **sections)
    world.encode()
    return world


class Samples(unittest.TestCase):
    def test_latents_are_those_of_inspect_shifted_and_scaled(self):
        for family in ("sd3", "sdxl"):
            world = encoded(self, family)
            means = plumb.dataset(world.exp, latents="mean")
            draws = plumb.dataset(world.exp)
            # diffusers: (latents - shift_factor) * scaling_factor
            scale, shift = means.recipe.scale, means.recipe.shift
            for number in range(3):
                out = world.folder / f"{number}.safetensors"
                world.run("inspect", "latents", "exp.toml", "--picture", world.picture(number), "--out", out)
                written = load_file(out)
                view = means.pictures[number].views[0]
                stored = means.store.latents(means.recipe.latents, view.entry)
                for name in ("mean", "logvar"):
                    self.assertTrue(torch.equal(torch.from_numpy(getattr(stored, name)), written[name][0]), name)
                expected = (written["mean"][0] - shift) * scale
                torch.testing.assert_close(means[number]["latents"], expected, rtol=1e-6, atol=1e-6)
                noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(number))
                drawn = (written["mean"][0] + (0.5 * written["logvar"][0]).exp() * noise - shift) * scale
                draws._generator = torch.Generator().manual_seed(number)
                torch.testing.assert_close(draws[number]["latents"], drawn, rtol=1e-5, atol=1e-5)
                with safe_open(out, "pt") as file:
                    facts = file.metadata()
                self.assertEqual(facts["bucket"], "{}x{}".format(*view.size))
                self.assertEqual((facts["crop_left"], facts["crop_top"]), (str(view.left), str(view.top)))

    def test_a_draw_is_new_each_time_and_the_same_from_the_same_generator(self):
        world = encoded(self)
        pictures = plumb.dataset(world.exp)
        self.assertFalse(torch.equal(pictures[0]["latents"], pictures[0]["latents"]))
        seeded = [plumb.dataset(world.exp, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
        self.assertTrue(torch.equal(seeded[0][0]["latents"], seeded[1][0]["latents"]))
        torch.manual_seed(3)
        one = pictures[1]["latents"]
        torch.manual_seed(3)
        self.assertTrue(torch.equal(one, pictures[1]["latents"]))

    def test_conditioning_is_the_stores(self):
        world = encoded(self, "flux1", recipe='[recipe.deviate]\nassembly.mask = "pads"')
        pictures = plumb.dataset(world.exp)
        sample = pictures[2]
        expected = pictures.store.conditioning(world.exp, "a red circle number 2").torch()
        for name in ("context", "pooled", "mask"):
            self.assertTrue(torch.equal(sample[name], getattr(expected, name)), name)
        self.assertEqual(sample["caption"], "a red circle number 2")
        self.assertNotIn("time_ids", sample)

    def test_sdxl_is_told_sizes_and_crops_of_each_view(self):
        world = encoded(self, "sdxl", dataset="flip = true\nbucket = false\ncrops = 2")
        pictures = plumb.dataset(world.exp, latents="mean")
        self.assertNotIn("mask", pictures[0])
        views = pictures.pictures[2].views
        # 96 x 64 px, of which 64 x 64 are kept: on the left, on the right, and each mirrored, told where they lie in the mirrored picture.
        lefts = {(view.flip, view.left): view.time_ids for view in views}
        self.assertEqual(
            lefts,
            {
                (False, 0): (64, 96, 0, 0, 64, 64),
                (False, 32): (64, 96, 0, 32, 64, 64),
                (True, 0): (64, 96, 0, 32, 64, 64),
                (True, 32): (64, 96, 0, 0, 64, 64),
            },
        )
        seen = {}
        for _ in range(60):
            sample = pictures[2]
            seen[sample["latents"].numpy().tobytes()] = tuple(sample["time_ids"].tolist())
        self.assertEqual(len(seen), 4)
        self.assertEqual(sorted(seen.values()), sorted(lefts.values()))

    def test_one_of_several_captions_is_drawn_or_each_is_a_sample(self):
        world = encoded(self)
        manifest = plumb.Manifest.of(world.exp)
        texts = tuple(f"a red circle number {n}" for n in range(3))
        pictures = tuple(dataclasses.replace(p, captions=texts, repeats=2) for p in manifest.pictures)
        manifest = dataclasses.replace(manifest, pictures=pictures)
        drawn = plumb.dataset(manifest)
        self.assertEqual(len(drawn), 6)
        self.assertEqual({drawn[0]["caption"] for _ in range(60)}, set(texts))
        self.assertEqual({plumb.dataset(manifest, captions="first")[n]["caption"] for n in range(6)}, {texts[0]})
        each = plumb.dataset(manifest, captions="all")
        self.assertEqual(sorted(each[n]["caption"] for n in range(18)), sorted(texts * 6))

    def test_dropped_captions_are_what_stands_for_none(self):
        for variant in ("diffusers", "onetrainer"):
            world = encoded(self, variant=variant, train="caption_dropout = 0.5")
            pictures = plumb.dataset(world.exp)
            self.assertEqual(pictures.caption_dropout, 0.5)
            none = pictures.store.unconditional(world.exp).torch()
            always = plumb.dataset(world.exp, caption_dropout=1.0)
            self.assertTrue(torch.equal(always[0]["context"], none.context))
            self.assertTrue(torch.equal(always[0]["pooled"], none.pooled))
            never = plumb.dataset(world.exp, caption_dropout=0.0)
            self.assertFalse(torch.equal(never[0]["context"], none.context))
            kinds = {pictures[0]["context"].numpy().tobytes() for _ in range(40)}
            # Each encoder is dropped for itself where the recipe says so.
            self.assertEqual(len(kinds), 2 if pictures.recipe.dropout == "together" else 8)

    def test_held_out_pictures_are_apart(self):
        world = encoded(self, train="validation_share = 0.3\nvalidate_every = 1")
        parts = {part: plumb.dataset(world.exp, split=part) for part in ("train", "validation", "all")}
        self.assertEqual([len(parts[part]) for part in ("train", "validation", "all")], [2, 1, 3])
        files = [{p.file for p in parts[part].pictures} for part in ("train", "validation")]
        self.assertFalse(files[0] & files[1])


class Loading(unittest.TestCase):
    def test_workers_draw_different_numbers_in_each_epoch(self):
        world = encoded(self)
        picture = plumb.Manifest.of(world.exp).pictures[0]
        manifest = dataclasses.replace(plumb.Manifest.of(world.exp), pictures=(dataclasses.replace(picture, repeats=4),))
        pictures = plumb.dataset(manifest)
        loader = DataLoader(pictures, batch_size=1, num_workers=2)
        drawn = [batch["latents"].numpy().tobytes() for _ in range(2) for batch in loader]
        self.assertEqual(len(set(drawn)), 8)

    def test_a_generator_is_refused_in_workers(self):
        world = encoded(self)
        pictures = plumb.dataset(world.exp, generator=torch.Generator())
        with self.assertRaisesRegex(Exception, "copied into every worker"):
            next(iter(DataLoader(pictures, num_workers=1)))

    def test_it_can_be_pickled_for_workers_that_are_spawned(self):
        world = encoded(self)
        pictures = plumb.dataset(world.exp, latents="mean")
        again = pickle.loads(pickle.dumps(pictures))
        self.assertTrue(torch.equal(again[1]["latents"], pictures[1]["latents"]))
        self.assertTrue(torch.equal(again[1]["context"], pictures[1]["context"]))

    def test_batches_are_of_one_size(self):
        world = encoded(self)
        pictures = plumb.dataset(world.exp)
        batches = BucketBatches(pictures, 2)
        seen = list(DataLoader(pictures, batch_sampler=batches))
        self.assertEqual(len(seen), len(batches))
        self.assertEqual(sorted(text for batch in seen for text in batch["caption"]), [f"a red circle number {n}" for n in range(3)])
        whole = BucketBatches(pictures, 2, drop_last=True)
        self.assertEqual([len(batch) for batch in whole], [2] * len(whole))
        fixed = [list(BucketBatches(pictures, 1, generator=torch.Generator().manual_seed(1))) for _ in range(2)]
        self.assertEqual(fixed[0], fixed[1])

    def test_contexts_that_cannot_be_stacked_are_told(self):
        # The authors' own T5 is padded to 77 tokens and cut nowhere.
        world = World(self, variant="reference")
        for number, words in enumerate((1, 200, 1)):
            world.picture(number).with_suffix(".txt").write_text("red " * words)
        world.encode()
        pictures = plumb.dataset(world.exp)
        lengths = {len(pictures[n]["context"]) for n in range(3)}
        self.assertEqual(len(lengths), 2)
        for batch in DataLoader(pictures, batch_sampler=BucketBatches(pictures, 3)):
            self.assertEqual(batch["context"].ndim, 3)
        manifest = plumb.Manifest.of(world.exp)
        texts = tuple(p.captions[0] for p in manifest.pictures)
        several = dataclasses.replace(manifest, pictures=tuple(dataclasses.replace(p, captions=texts) for p in manifest.pictures))
        with self.assertRaisesRegex(plumb.Error, "only equal ones can be stacked"):
            BucketBatches(plumb.dataset(several), 2)
        BucketBatches(plumb.dataset(several, captions="all"), 2)

    def test_what_makes_no_sense_is_refused(self):
        manifest = plumb.Manifest.of(encoded(self).exp)
        for wrong in ({"split": "test"}, {"captions": "best"}, {"latents": "mode"}, {"caption_dropout": 2.0}):
            with self.assertRaises(ValueError):
                plumb.dataset(manifest, **wrong)


class Statistics(unittest.TestCase):
    def test_latents_with_statistics_of_each_channel(self):
        recipe = plumb.Store(encoded(self).store).recipes()[0]
        recipe = dataclasses.replace(recipe, scale=2.0, shift=0.0, mean=(1.0, -1.0), std=(0.5, 4.0))
        latents = np.ones((2, 1, 3), np.float32)
        found = recipe.normalize(latents)
        self.assertEqual(found.dtype, np.float32)
        np.testing.assert_array_equal(found, [[[0, 0, 0]], [[1, 1, 1]]])

    def test_latents_with_statistics_of_each_place_in_a_patch(self):
        recipe = plumb.Store(encoded(self).store).recipes()[0]
        recipe = dataclasses.replace(recipe, mean=(0.0, 1.0, 2.0, 3.0), std=(1.0, 2.0, 1.0, 4.0), patch=2)
        found = recipe.normalize(np.full((1, 2, 4), 5.0, np.float32))
        self.assertEqual(found.dtype, np.float32)
        np.testing.assert_array_equal(found, [[[5, 2, 5, 2], [3, 0.5, 3, 0.5]]])


if __name__ == "__main__":
    unittest.main()
