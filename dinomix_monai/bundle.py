"""The bundle in Python: the files of its configs, and the parsers and workflows that are made of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dinomix_monai
from dinomix_monai.run import check_paths, check_settings, folder_above_configs, read_configuration

if TYPE_CHECKING:
    from monai.bundle import ConfigParser, ConfigWorkflow

    from dinomix_monai.teacher import TokenCache

__all__ = ["Bundle", "config_files", "open_configuration", "prepare_volumes", "token_cache_of"]


@dataclass(frozen=True)
class Bundle:
    """
    A folder with ``configs/``, in which runs find their configuration and leave their outputs.

    Configs go by their names in ``configs/``, such as ``train`` or ``baseline/bcp``, or by the paths of files. The
    first one is the configuration, and those that follow are overlays. Settings are ids with other values, which have
    the last word.

    Args:
        root: the folder.
        settings_file: an overlay that belongs to this bundle and comes after all others; ``None`` for none. Of a
            component that a configuration lacks, as ``distiller#interval`` in one for inference, nothing is read.
    """

    root: Path
    settings_file: Path | None = None

    @classmethod
    def find(cls, root: str | Path | None = None, name: str = "bundle_root") -> Bundle:
        """
        The bundle in a folder, or else the one that came with the package.

        Args:
            root: the folder; ``None`` for the one beside the package in its repository, or in the installed package.
            name: name of the argument, for the message.

        Raises:
            FileNotFoundError: When there is no bundle.
        """
        package = Path(dinomix_monai.__file__).parent
        came = [package.parent / "bundle", package / "bundle_files"]
        folder = Path(root) if root is not None else next((one for one in came if (one / "configs").is_dir()), came[0])
        bundle = cls(folder.expanduser().absolute())
        if not (bundle.configs / "train.json").is_file():
            raise FileNotFoundError(
                f"{name} must be the folder of the bundle, got {bundle.root}, which has no configs/train.json. Give "
                "its path, or make it by `python -m dinomix_monai bundle`."
            )
        return bundle

    @classmethod
    def present(cls) -> Bundle:
        """
        The bundle in the present folder, or else the one that came with the package.

        Raises:
            FileNotFoundError: When there is none.
        """
        own = Path("bundle")
        return cls.find(own if (own / "configs" / "train.json").is_file() else None)

    def copy(self, folder: str | Path) -> Path:
        """
        Copies what a bundle consists of, and nothing that runs have left.

        Args:
            folder: where to; it is made.

        Returns:
            Its ``configs/train.json``.

        Raises:
            FileExistsError: When there is something.
        """
        target = Path(folder).expanduser()
        if target.exists():
            raise FileExistsError(f"folder must not be there yet, because nothing is replaced unasked, got {target}.")
        for name in ("configs", "docs"):
            shutil.copytree(self.root / name, target / name)
        shutil.copyfile(self.root / "LICENSE", target / "LICENSE")
        return target / "configs" / "train.json"

    @property
    def configs(self) -> Path:
        """Folder of the configs."""
        return self.root / "configs"

    def files(self, *names: str | Path) -> list[str]:
        """
        Paths of configs, and of the bundle's own settings after them.

        Raises:
            FileNotFoundError: When there is no such config.
        """
        files = [Path(name) if _is_path(name) else self.configs / f"{name}.json" for name in names]
        if missing := [file for file in files if not file.is_file()]:
            raise FileNotFoundError(
                f"A config must be one of the bundle or the path of a file, got {missing[0]}, which does not exist. "
                "Start from the folder above the bundle, or give its absolute path."
            )
        return [str(file) for file in (*files, *([self.settings_file] if self.settings_file else []))]

    def parser(self, *names: str | Path, **settings: Any) -> ConfigParser:
        """
        The configuration of some configs, with the given settings.

        Raises:
            FileNotFoundError: When there is no such config.
            ValueError: When a file is no configuration, a path is a number, or nothing refers to one of the settings.
        """
        from monai.bundle import ConfigParser

        for file in self.files(*names):
            read_configuration(file)
        parser = ConfigParser()
        parser.read_config(Bundle(self.root).files(*names))
        if self.settings_file is not None:
            own = read_configuration(self.settings_file, "settings_file")
            parser.update({name: value for name, value in own.items() if _has_owner(parser, name)})
        parser.update({"bundle_root": str(self.root), **settings})
        check_settings(parser.get(), settings)
        check_paths(parser)
        return parser

    def workflow(self, *names: str | Path, workflow_type: str = "train", **settings: Any) -> ConfigWorkflow:
        """
        MONAI's workflow of some configs, with the given settings; it is not initialized.

        Args:
            *names: see :class:`Bundle`.
            workflow_type: ``train`` or ``infer``, as MONAI has it.
            **settings: ids with other values, and ``run_id`` for another one than ``run``.

        Raises:
            FileNotFoundError: When there is no such config.
        """
        from monai.bundle import ConfigWorkflow

        return ConfigWorkflow(
            config_file=self.files(*names),
            meta_file=str(self.configs / "metadata.json"),
            logging_file=False,
            workflow_type=workflow_type,
            **{"bundle_root": str(self.root), **settings},
        )


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.endswith((".json", ".yaml", ".yml"))


def _has_owner(parser: ConfigParser, name: str) -> bool:
    owner = name.replace("::", "#").rpartition("#")[0]
    return not owner or owner in parser


def config_files(config_file: str | Path | Sequence[str | Path]) -> list[str]:
    """
    The files of a configuration and its overlays, in a list or, as MONAI has it, separated by commas.

    ``bundle`` stands for :meth:`Bundle.present`.
    """
    files = [str(config_file)] if isinstance(config_file, (str, Path)) else [*map(str, config_file)]
    # The name of a file may have a comma.
    files = files[0].split(",") if len(files) == 1 and not Path(files[0]).is_file() else files
    return [_present(file) for file in files]


def _present(file: str) -> str:
    first, *others = Path(file).parts or ("",)
    if first != "bundle" or Path(file).is_file():
        return file
    came = Bundle.present().root.joinpath(*others)
    return str(came) if came.is_file() else file


def open_configuration(config_file: str | Path | Sequence[str | Path], **settings: Any) -> ConfigParser:
    """
    Reads a configuration for a command of this package, as ``python -m monai.bundle`` does for its own.

    Args:
        config_file: a configuration and its overlays, in a list or, as MONAI has it, separated by commas.
        **settings: ids with other values, as they were typed.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When a file is no configuration, or nothing refers to one of the settings.
    """
    files = config_files(config_file)
    for file in files:
        read_configuration(file)
    return Bundle(Path(folder_above_configs(Path(files[0]).parent))).parser(*map(Path, files), **settings)


def prepare_volumes(parser: ConfigParser) -> None:
    """
    Does all that a training does once for each of its volumes, a part of which it would leave to its first epochs.

    Both data sets are preprocessed and cached, and where there is a token cache the frozen teacher sees their volumes.

    Args:
        parser: the bundle's training configuration.
    """
    for name in ("train#dataset", "train#unlabeled_dataset"):
        parser.get_parsed_content(name)
    if (token_cache := token_cache_of(parser)) is not None:
        token_cache.complete()


def token_cache_of(parser: ConfigParser) -> TokenCache | None:
    """The token cache that a training distills from, or ``None`` where it distills nothing or asks the teacher."""
    from dinomix_monai.teacher import TokenCache

    teacher = getattr(parser.get_parsed_content("distiller"), "teacher", None)
    return teacher if isinstance(teacher, TokenCache) else None
