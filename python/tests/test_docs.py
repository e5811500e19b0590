"""The example of `docs/python.md` runs as it stands there."""

import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from plumb import _program
from support import ROOT


class Example(unittest.TestCase):
    def test_the_training_loop_trains_a_lora_that_loads(self):
        text = (ROOT / "docs" / "python.md").read_text()
        (experiment,) = re.findall(r"```toml\n(.*?)```", text, re.S)
        loop = next(code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "optimizer" in code)
        self.assertLessEqual(len(loop.splitlines()), 36)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "assets").symlink_to(ROOT / "assets")
            (folder / "shapes.toml").write_text(experiment)

            def run(*command):
                ran = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
                self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
                return ran.stdout

            run(_program.find(), "encode", "shapes.toml")
            said = run(sys.executable, "-c", loop)
            print(said.strip())
            first, last = map(float, re.search(r"loss ([\d.]+) at first, ([\d.]+) at last", said).groups())
            self.assertLess(last, first)
            self.assertIn("sd3", run(_program.find(), "inspect", "lora", "--family", "sd3", "shapes/pytorch_lora_weights.safetensors"))
            load = (
                "import diffusers\n"
                "t = diffusers.SD3Transformer2DModel.from_pretrained('assets/tiny-sd3', subfolder='transformer')\n"
                "t.load_lora_adapter('shapes', weight_name='pytorch_lora_weights.safetensors', prefix='transformer')\n"
                "print(sum('lora_B' in n and bool(p.abs().max() > 0) for n, p in t.named_parameters()))"
            )
            self.assertGreater(int(run(sys.executable, "-c", load).split()[-1]), 10)


if __name__ == "__main__":
    unittest.main()
