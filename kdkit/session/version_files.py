"""Version files: versions are saved, loaded and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.models.traits import traits_of
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.evaluation import Evaluation
from kdkit.session.history import Version
from kdkit.session.loading import load_version
from kdkit.session.model_card import write_card
from kdkit.session.saving import code_of, facts_of, recipe_of
from kdkit.session.stored_form import codec_named, saved_storage
from kdkit.storage import folder
from kdkit.storage.export import export
from kdkit.storage.trusted_classes import canonical, path_of


@restore_torch_modes
class VersionFiles(Evaluation):
    """The part of a session that writes and reads versions."""

    def recipe(self, version: Any = None, anywhere: bool = False) -> Pipeline:
        """The stages that made a version, to run on another model or other data; bridges are inserted again when it runs.

        Args:
            version: default: the head.
            anywhere: the stages before a version that was loaded may name files and folders outside of the working directory.

        Raises:
            KdError: a stage of a version that was loaded is not installed here, or names a place outside of the working directory.
        """
        return recipe_of(self.history, self.version(version), anywhere)

    def code(self, version: Any = None) -> str:
        """The `%kd` cells that make a version again; default: the head."""
        return code_of(self.history, self.version(version))

    def save(self, path: str | Path, version: Any = None, force: bool = False) -> Path:
        """Write a version to a folder: structure, weights, recipe and report; no pickle, and no plugin needed to load it.

        Args:
            path: the folder; a path that ends in `.yaml` becomes a file with the recipe alone.
            version: default: the head.
            force: whether to replace a folder or file that holds another version. This session's own version of the same name is always replaced.

        Raises:
            KdError: the folder can't be written, or holds another version or something else.
        """
        chosen = self.version(version)
        replace_other = force or self._written.holds(path, chosen)
        if Path(path).suffix in (".yaml", ".yml"):
            written = self.recipe(chosen).save(path, replace_other)
        else:
            facts = facts_of(self.history, chosen, self.task.name if self.task else None, self.objects.example())
            codec = codec_named(chosen.storage.codec) if chosen.storage else None
            written = Path(folder.save(path, self.history.model_of(chosen), self.original, facts, chosen.storage, codec, replace_other))
        return self._written.remember(written, chosen)

    def load(self, path: str | Path, skeleton: Any = None) -> Version:
        """Load a saved version into this session and measure it here.

        Args:
            path: a folder that `save` wrote.
            skeleton: an instance of the model's class, or the class; needed only if kdkit can't find the class.

        Raises:
            KdError: the folder is damaged, newer, holds a pickle, or does not fit the skeleton.
        """
        with self._busy():
            loaded = load_version(path, self._skeleton(path) if skeleton is None else skeleton)
            with loaded.explain_failures():
                report = self._measured(loaded.model, storage=saved_storage(loaded.facts))
                version = loaded.describe(Version(self.history.next, loaded.model, report, traits_of(loaded.model)))
            self.history = self.history.grown([version], loaded.label)
            return self.head

    def _skeleton(self, path: str | Path) -> nn.Module | None:
        return self.original if canonical(folder.read(path)["skeleton"].get("class", "")) == path_of(type(self.original)) else None

    def export(self, path: str | Path, version: Any = None, force: bool = False, card: bool | None = None, licence: str = "") -> Path:
        """Write a version for use without kdkit: an `.onnx` file, a `.pt2` program of torch.export, or a folder for `from_pretrained`.

        Args:
            path: the file or folder.
            version: default: the head.
            force: whether to replace a file or folder. This session's own version of the same name is always replaced.
            card: whether to write a model card: `README.md` in a folder, a file with the suffix `.md` beside a file; default: in folders.
            licence: what the card states, such as "apache-2.0"; default: what the card of the base model states.

        Raises:
            KdError: the format is unknown, the version can't be exported to it, or something else has that name.
        """
        chosen = self.version(version)
        replace_other, target = force or self._written.holds(path, chosen), Path(path)
        wanted = not target.suffix if card is None else card
        text = write_card(self.history, chosen, target, licence, self.task.name if self.task else "") if wanted else ""
        written = export(self.history.model_of(chosen), target, self.objects.example(), replace_other, self.objects.get("tokenizer"), text)
        return self._written.remember(written, chosen)
