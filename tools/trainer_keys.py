"""Writes configs/trainers/known/*.toml: every name that a trainer reads from its configuration, and the line where it does.

    python tools/trainer_keys.py --clones FOLDER          FOLDER/OWNER+NAME, FOLDER/NAME or FOLDER/NAME.git: clones, bare or not
    python tools/trainer_keys.py --clones FOLDER --check  says what would change, writes nothing

What a name does stands in configs/trainers/*.toml, by hand. This list is made from the source at the revision that those files
name, so that "the trainer does not know it" is true, and so that a name nobody has looked at yet is called that.
"""

import argparse
import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINERS = ROOT / "configs/trainers"
REPOSITORY = re.compile(r"github\.com/([\w.-]+)/([\w.-]+) at ([0-9a-f]{7,40})")


class Tree:
    """The files of a repository at a revision."""

    def __init__(self, clones, owner, name, revision):
        folders = [clones / f"{owner}+{name}", clones / name, clones / f"{name}.git"]
        self.folder = next((f.resolve() for f in folders if f.exists()), None)
        self.revision = revision
        if self.folder is None:
            sys.exit(f"no clone of {owner}/{name} in {clones}")

    def git(self, *arguments):
        return subprocess.run(["git", "-C", str(self.folder), *arguments], capture_output=True, check=True).stdout.decode("utf-8", "replace")

    def text(self, path):
        return self.git("show", f"{self.revision}:{path}")

    def python(self, path):
        return ast.parse(self.text(path))

    def files(self, *patterns):
        names = self.git("ls-tree", "-r", "--name-only", self.revision).splitlines()
        return [name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)]


class Known:
    """Names by scope, and of each the first place where it stands; and names that stand for others of their scope."""

    def __init__(self):
        self.scopes, self.aliases = {}, {}

    def add(self, scope, name, path, line):
        self.scopes.setdefault(scope, {}).setdefault(name, f"{path}:{line}")


def calls(tree):
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def constant(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def method(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def arguments_of(tree, known, scope, path, keep_dashes=False):
    """argparse: the long options of a file; `--learning-rate` is `learning_rate` as argparse has it."""
    for call in calls(tree):
        if method(call) == "add_argument":
            for option in filter(None, map(constant, call.args)):
                if option.startswith("--"):
                    known.add(scope, option[2:].replace("-", "_"), path, call.lineno)


def gets_of(node, known, scope, path, receiver, methods=("get", "pop")):
    """`receiver.get("name", ...)` and `receiver["name"]`."""
    for child in ast.walk(node):
        name = None
        if isinstance(child, ast.Call) and method(child) in methods and isinstance(child.func, ast.Attribute) and child.args:
            name = constant(child.args[0]) if ast.unparse(child.func.value) == receiver else None
        elif isinstance(child, ast.Subscript) and ast.unparse(child.value) == receiver:
            name = constant(child.slice)
        elif isinstance(child, ast.Compare) and len(child.ops) == 1 and isinstance(child.ops[0], ast.In):
            name = constant(child.left) if ast.unparse(child.comparators[0]) == receiver else None
        if name:
            known.add(scope, name, path, child.lineno)


def kohya(tree):
    known = Known()
    scripts = ["train_network.py", "sdxl_train_network.py", "sd3_train_network.py", "flux_train_network.py"]
    libraries = ["train_util", "sdxl_train_util", "sd3_train_utils", "flux_train_utils", "custom_train_functions", "deepspeed_utils", "sai_model_spec", "config_util", "utils"]
    for path in scripts + [f"library/{name}.py" for name in libraries]:
        arguments_of(tree.python(path), known, "arguments", path)
    # Of a program that only looks at a data set's file.
    for name in [name for name in known.scopes["arguments"] if name.startswith("support_")]:
        del known.scopes["arguments"][name]
    path = "library/config_util.py"
    for node in ast.walk(tree.python(path)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and node.targets[0].id.endswith("_SCHEMA"):
            if node.targets[0].id != "ARGPARSE_SPECIFIC_SCHEMA":
                for key in node.value.keys:
                    name = constant(key) or constant(key.args[0])
                    known.add("dataset", name, path, key.lineno)
    for path in ["networks/lora.py", "networks/lora_sd3.py", "networks/lora_flux.py"]:
        gets_of(tree.python(path), known, "network_args", path, "kwargs")
    return known


def musubi(tree):
    known = Known()
    below = "src/musubi_tuner"
    scripts = ["wan_train_network", "flux_2_train_network", "zimage_train_network", "flux_kontext_train_network"]
    for path in [f"{below}/{name}.py" for name in scripts] + [f"{below}/training/parser_common.py", f"{below}/flux_2/flux2_utils.py"]:
        arguments_of(tree.python(path), known, "arguments", path)
    path = f"{below}/dataset/config_utils.py"
    for node in ast.walk(tree.python(path)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and getattr(node.targets[0], "id", "").endswith("_SCHEMA"):
            if node.targets[0].id != "ARGPARSE_SPECIFIC_SCHEMA":
                for key in node.value.keys:
                    known.add("dataset", constant(key), path, key.lineno)
    for name in ["lora", "lora_wan", "lora_flux_2", "lora_zimage", "lora_flux"]:
        path = f"{below}/networks/{name}.py"
        if tree.files(re.escape(path)):
            gets_of(tree.python(path), known, "network_args", path, "kwargs")
    return known


def ai_toolkit(tree):
    known = Known()
    path = "toolkit/config_modules.py"
    scopes = {
        "SaveConfig": "save", "LoggingConfig": "logging", "SampleItem": "sample.samples", "SampleConfig": "sample", "NetworkConfig": "network",
        "AdapterConfig": "adapter", "ValidationItem": "validation.items", "ValidationConfig": "validation", "EmbeddingConfig": "embedding",
        "DecoratorConfig": "decorator", "TrainConfig": "train", "ModelConfig": "model", "EMAConfig": "train.ema_config", "DatasetConfig": "datasets",
        "SliderConfig": "slider", "GuidanceConfig": "guidance", "LoRMConfig": "network.lorm_config",
    }
    for node in tree.python(path).body:
        if isinstance(node, ast.ClassDef) and node.name in scopes:
            gets_of(node, known, scopes[node.name], path, "kwargs")
    for path in ["jobs/process/BaseProcess.py", "jobs/process/BaseTrainProcess.py", "jobs/process/BaseSDTrainProcess.py", "extensions_built_in/sd_trainer/SDTrainer.py"]:
        for call in calls(tree.python(path)):
            if method(call) == "get_conf" and call.args and constant(call.args[0]):
                known.add("process", constant(call.args[0]), path, call.lineno)
    for path in ["jobs/BaseJob.py", "jobs/ExtensionJob.py", "jobs/TrainJob.py"]:
        for call in calls(tree.python(path)):
            if method(call) == "get_conf" and call.args and constant(call.args[0]):
                known.add("config", constant(call.args[0]), path, call.lineno)
    gets_of(tree.python("jobs/BaseJob.py"), known, "process", "jobs/BaseJob.py", "process")
    gets_of(tree.python("toolkit/job.py"), known, "root", "toolkit/job.py", "config")
    gets_of(tree.python("jobs/BaseJob.py"), known, "root", "jobs/BaseJob.py", "config")
    return known


def simpletuner(tree):
    known = Known()
    fields = tree.files(r"simpletuner/simpletuner_sdk/server/services/field_registry/sections/\w+\.py", r"simpletuner/helpers/models/field_registry/\w+\.py")
    for path in fields:
        for call in calls(tree.python(path)):
            if method(call) == "ConfigField":
                given = {k.arg: k.value for k in call.keywords}
                names = [given[k] for k in ("arg_name", "name") if k in given] + list(getattr(given.get("aliases"), "elts", []))
                plain = [constant(name).removeprefix("--").replace("-", "_") for name in names if constant(name)]
                for name in plain:
                    known.add("options", name, path, call.lineno)
                    if name != plain[0]:
                        known.aliases.setdefault("options", {})[name] = plain[0]
    # What a config.env calls them, and what a config.json of older days does.
    path = "simpletuner/helpers/configuration/env_file.py"
    for node in tree.python(path).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "env_to_args_map":
            for key, value in zip(node.value.keys, node.value.values):
                known.add("options", key.value, path, key.lineno)
                known.aliases["options"][key.value] = value.value.removeprefix("--").split("=")[0]
    path = "simpletuner/helpers/configuration/cli_utils.py"
    for node in ast.walk(tree.python(path)):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and method(decorator) == "_legacy_handler":
                known.add("options", constant(decorator.args[0]), path, node.lineno)
    # One for each encoder.
    path = "simpletuner/helpers/training/quantisation/__init__.py"
    for node in ast.walk(tree.python(path)):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"text_encoder_\d_precision", node.attr):
            known.add("options", node.attr, path, node.lineno)
    path = "simpletuner/helpers/configuration/cmd_args.py"
    arguments_of(tree.python(path), known, "options", path)
    for path in tree.files(r"simpletuner/helpers/data_backend/.*\.py"):
        for receiver in ["backend", "backend_dict", "backend_config", "config", "data_backend", "data_backend_config", "self.config"]:
            gets_of(tree.python(path), known, "backend", path, receiver)
    return known


def diffusers(tree):
    known = Known()
    for folder, script in [
        ("dreambooth", "train_dreambooth_lora"), ("dreambooth", "train_dreambooth_lora_sdxl"), ("dreambooth", "train_dreambooth_lora_sd3"),
        ("dreambooth", "train_dreambooth_lora_flux"), ("dreambooth", "train_dreambooth_lora_flux_kontext"), ("dreambooth", "train_dreambooth_lora_flux2_klein"),
        ("dreambooth", "train_dreambooth_lora_flux2_klein_img2img"), ("dreambooth", "train_dreambooth_lora_z_image"), ("text_to_image", "train_text_to_image_lora"), ("text_to_image", "train_text_to_image_lora_sdxl"),
        ("advanced_diffusion_training", "train_dreambooth_lora_flux_advanced"), ("advanced_diffusion_training", "train_dreambooth_lora_sdxl_advanced"),
        ("advanced_diffusion_training", "train_dreambooth_lora_sd15_advanced"),
    ]:
        path = f"examples/{folder}/{script}.py"
        arguments_of(tree.python(path), known, script, path)
    return known


def onetrainer(tree):
    known = Known()
    scopes = {
        "TrainConfig": "config", "TrainOptimizerConfig": "optimizer", "TrainModelPartConfig": "part", "TrainEmbeddingConfig": "embedding",
        "QuantizationConfig": "quantization", "ConceptConfig": "concepts", "ConceptImageConfig": "concepts.image", "ConceptTextConfig": "concepts.text",
        "SampleConfig": "samples",
    }
    for name in ["TrainConfig", "ConceptConfig", "SampleConfig"]:
        path = f"modules/util/config/{name}.py"
        for node in tree.python(path).body:
            if not isinstance(node, ast.ClassDef) or node.name not in scopes:
                continue
            for call in calls(node):
                if method(call) == "append" and call.args and isinstance(call.args[0], ast.Tuple) and constant(call.args[0].elts[0]):
                    known.add(scopes[node.name], constant(call.args[0].elts[0]), path, call.lineno)
    # What an older file has, and is moved on reading.
    path = "modules/util/config/TrainConfig.py"
    for node in ast.walk(tree.python(path)):
        if isinstance(node, ast.FunctionDef) and "migration" in node.name:
            gets_of(node, known, "config", path, "migrated_data")
            gets_of(node, known, "config", path, "data")
            for child in ast.walk(node):
                if isinstance(child, ast.Compare) and ast.unparse(child.left) == "key" and constant(child.comparators[0]):
                    known.add("config", constant(child.comparators[0]), path, child.lineno)
    path = "modules/util/config/BaseConfig.py"
    for scope in ["config", "concepts", "samples"]:
        gets_of(tree.python(path), known, scope, path, "data")
    return known


def diffusion_pipe(tree):
    known = Known()
    scopes = {
        "train.py": {"config": "config", "config['model']": "model", "model_config": "model", "optim_config": "optimizer", "optimizer_config": "optimizer", "adapter_config": "adapter", "config['monitoring']": "monitoring", "wandb": "monitoring"},
        "models/base.py": {"self.config": "config", "config": "config", "self.model_config": "model", "model_config": "model", "adapter_config": "adapter", "self.config['model']": "model"},
        "utils/dataset.py": {"dataset_config": "dataset", "self.dataset_config": "dataset", "directory_config": "directory", "self.directory_config": "directory"},
        "utils/saver.py": {"config": "config", "self.config": "config"},
        "utils/common.py": {"model_config": "model"},
    }
    model = {"self.config": "config", "self.config['adapter']": "adapter", "self.model_config": "model", "model_config": "model", "adapter_config": "adapter", "optimizer_config": "optimizer", "config": "config"}
    for name in ["flux", "sd3", "sdxl", "chroma", "flux2", "z_image", "wan/wan"]:
        scopes[f"models/{name}.py"] = model
    for path, receivers in scopes.items():
        for receiver, scope in receivers.items():
            gets_of(tree.python(path), known, scope, path, receiver)
    # Directories may have what the data set has (utils/dataset.py).
    for name, place in known.scopes.get("dataset", {}).items():
        known.scopes.setdefault("directory", {}).setdefault(name, place)
    # The optimizer gets the rest of its table by name.
    path = "train.py"
    line = next(n for n, text in enumerate(tree.text(path).splitlines(), 1) if "optim_config.items()" in text)
    for name in ["lr", "betas", "eps", "weight_decay"]:
        known.add("optimizer", name, path, line)
    return known


READERS = {"kohya": kohya, "musubi": musubi, "ai-toolkit": ai_toolkit, "simpletuner": simpletuner, "diffusers": diffusers, "onetrainer": onetrainer, "diffusion-pipe": diffusion_pipe}


def listing(trainer, source, known):
    lines = ["# Written by tools/trainer_keys.py: every name that the trainer reads, and where. What it does: ../" + trainer + ".toml.", "", f'source = "{source}"']
    for scope in sorted(known.scopes):
        lines += ["", f'[scopes."{scope}"]']
        lines += [f'"{name}" = "{place}"' for name, place in sorted(known.scopes[scope].items())]
    for scope in sorted(known.aliases):
        lines += ["", f'[aliases."{scope}"]']
        lines += [f'"{name}" = "{other}"' for name, other in sorted(known.aliases[scope].items())]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    changed = False
    for trainer, reader in READERS.items():
        source = tomllib.loads((TRAINERS / f"{trainer}.toml").read_text(encoding="utf-8"))["sources"][trainer]
        owner, name, revision = REPOSITORY.search(source).groups()
        text = listing(trainer, source, reader(Tree(arguments.clones, owner, name, revision)))
        path = TRAINERS / "known" / f"{trainer}.toml"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed = True
            print(f"{path.relative_to(ROOT)}: {'differs' if arguments.check else 'written'}")
            if not arguments.check:
                path.write_text(text, encoding="utf-8")
    sys.exit(arguments.check and changed)


if __name__ == "__main__":
    main()
