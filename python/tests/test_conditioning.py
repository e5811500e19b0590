"""What the package reads is what `plumb inspect conditioning` writes, bit for bit."""

import os
import shutil
import unittest

import numpy as np
import plumb
from safetensors import safe_open
from safetensors.numpy import load_file
from support import MODELS, ROOT, World, without_program

LONG = "a red circle left of a blue square above a green triangle, " * 8
CAPTIONS = ["", "a red circle", 'caf\u00e9 \U0001f600 "quoted" \\ \u2028\t\x7f\n\u4f60\u597d', LONG]


class Equal(unittest.TestCase):
    def check(self, world, captions=CAPTIONS):
        store = None
        for number, caption in enumerate(captions):
            out = world.folder / f"{number}.safetensors"
            world.run("inspect", "conditioning", "exp.toml", f"--caption={caption}", "--out", out)
            store = store or plumb.Store(world.store)
            written = load_file(out)
            with safe_open(out, "np") as file:
                facts = file.metadata()
            read = store.conditioning(world.exp, caption)
            self.equal(read.context, written["context"][0])
            self.equal(read.pooled, written["pooled"][0])
            self.assertEqual(facts["mask"] == "pads", read.mask is not None)
            if read.mask is not None:
                self.equal(read.mask.astype(np.uint8), written["mask"][0])
                self.assertEqual(read.token_count, int(written["mask"].sum()))
            slots = {name.split(".")[0] for name in written if "." in name and not name.endswith("token_ids")}
            self.assertEqual(set(read.encoders), slots)
            for slot, output in read.encoders.items():
                self.equal(output.hidden, written.get(f"{slot}.hidden"))
                self.equal(output.pooled, written.get(f"{slot}.pooled"))
                self.assertEqual(output.token_count, int(facts[f"{slot}.token_count"]))
            recipe = store.recipe(world.exp)
            self.assertEqual(recipe.fingerprint, facts["recipe_fingerprint"])
        return store

    def equal(self, found, expected):
        if expected is None:
            self.assertIsNone(found)
            return
        self.assertEqual((found.dtype, found.shape), (expected.dtype, expected.shape))
        # As bytes: -0.0 is not 0.0 here.
        self.assertEqual(found.tobytes(), np.ascontiguousarray(expected).tobytes())

    def test_sd3_in_every_precision(self):
        for precision in ("", 'precision = "f16"', 'precision = "bf16"'):
            with self.subTest(precision):
                self.check(World(self, "sd3", "reference", store=precision))

    def test_sd3_with_zeroed_pads_and_longer_captions(self):
        deviate = (
            '[recipe.deviate]\nassembly.pads.t5 = "zero"\nassembly.pads.clip_l = "zero"\n'
            "t5.tokens.max_tokens = 154\nt5.tokens.min_tokens = 154"
        )
        store = self.check(World(self, "sd3", "diffusers", recipe=deviate), [CAPTIONS[1], LONG])
        self.assertEqual(len(store._experiments), 1)

    def test_sd3_without_t5(self):
        world = World(self, "sd3", "kohya")
        model = world.folder / "model"
        shutil.copytree(ROOT / "assets" / MODELS["sd3"], model, copy_function=os.symlink)
        shutil.rmtree(model / "text_encoder_3")
        world.write("sd3", "kohya", path=str(model))
        store = self.check(world, [CAPTIONS[1]])
        self.assertEqual(dict(store.recipe(world.exp).zero_rows), {"t5": 77})

    def test_flux_with_a_mask_and_without(self):
        self.check(World(self, "flux1", "diffusers"), CAPTIONS[:2])
        masked = World(self, "flux1", "diffusers", recipe='[recipe.deviate]\nassembly.mask = "pads"')
        store = self.check(masked, [CAPTIONS[1], CAPTIONS[2]])
        mask = store.conditioning(masked.exp, "a red circle").mask
        self.assertTrue(mask[0] and not mask[-1])

    def test_sdxl(self):
        self.check(World(self, "sdxl", "diffusers"))

    def test_what_stands_for_no_caption(self):
        for variant, is_zero in (("diffusers", False), ("onetrainer", True)):
            world = World(self, "sd3", variant)
            store = self.check(world, [""])
            empty, none = store.conditioning(world.exp, ""), store.unconditional(world.exp)
            self.assertEqual(none.context.shape, empty.context.shape)
            self.assertEqual(none.pooled.shape, empty.pooled.shape)
            self.assertEqual(not none.context.any() and not none.pooled.any(), is_zero)
            if not is_zero:
                self.equal(none.context, empty.context)


class Recipes(unittest.TestCase):
    def test_a_recipe_that_the_store_names_needs_no_program(self):
        world = World(self, "sd3", "kohya")
        world.encode()
        store = plumb.Store(world.store)
        expected = store.conditioning(world.exp, "a red circle number 1")
        without_program(self)
        store = plumb.Store(world.store)
        (recipe,) = store.recipes()
        self.assertEqual(recipe.name, "sd3/3.5-large:kohya")
        for named in (recipe, recipe.name):
            found = store.conditioning(named, "a red circle number 1")
            np.testing.assert_array_equal(found.context, expected.context)
        with self.assertRaisesRegex(plumb.Error, "cannot be run"):
            store.conditioning(world.exp, "a red circle number 1")

    def test_a_name_of_several_recipes_is_refused(self):
        world = World(self, "sd3", "diffusers")
        world.encode()
        world.write("sd3", "diffusers", recipe='[recipe.deviate]\nassembly.pads.t5 = "zero"')
        world.exp.rename(world.folder / "other.toml")
        world.run("encode", "other.toml")
        store = plumb.Store(world.store)
        self.assertEqual(len(store.recipes()), 2)
        with self.assertRaisesRegex(plumb.Error, '2 recipes .* assembly.pads.t5 = zero instead of keep'):
            store.conditioning("sd3/3.5-large:diffusers", "a red circle number 1")
        with self.assertRaisesRegex(plumb.Error, "neither an Experiment's file nor a recipe"):
            store.conditioning("sd3/3.5-large", "a red circle number 1")

    def test_torch_tensors_have_the_same_numbers(self):
        import torch

        world = World(self, "flux1", "diffusers", recipe='[recipe.deviate]\nassembly.mask = "pads"')
        world.run("inspect", "conditioning", "exp.toml", "--caption=x", "--out", "x.safetensors")
        found = plumb.Store(world.store).conditioning(world.exp, "x")
        tensors = found.torch(dtype=torch.bfloat16)
        self.assertEqual((tensors.context.dtype, tensors.mask.dtype), (torch.bfloat16, torch.bool))
        self.assertTrue(torch.equal(found.torch().context, torch.from_numpy(found.context)))


if __name__ == "__main__":
    unittest.main()
