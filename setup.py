"""The subpackages that live in the repository root under the import name `contextual_inversion`."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = "contextual_inversion"
SHIPPED = ("core", "nodes", "cli")
DATA = ["*.safetensors", "*.json", "*.txt", "*.md", "*.png", "*.jpg", "*.jpeg"]

subpackages = find_packages(include=[pattern for name in SHIPPED for pattern in (name, f"{name}.*")])


class BuildWithoutThisScript(build_py):
    """The root folder is a package, and this script is not one of its modules."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    cmdclass={"build_py": BuildWithoutThisScript},
    packages=[ROOT, *(f"{ROOT}.{name}" for name in subpackages)],
    include_package_data=False,
    package_data={
        # `**` so that a data folder needs no __init__.py of its own.
        ROOT: [
            *(f"{top}/**/{pattern}" for top in SHIPPED for pattern in DATA),
            "js/**/*",
            "workflows/*",
            "locales/**/*.json",
            "pyproject.toml",
        ]
    },
)
