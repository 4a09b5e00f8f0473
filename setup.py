"""The subpackages that live in the repository root under the import name `contextual_inversion`."""

from setuptools import find_packages, setup

ROOT = "contextual_inversion"
SHIPPED = ("core", "nodes", "cli")
DATA = ["*.safetensors", "*.json", "*.txt", "*.md", "*.png", "*.jpg", "*.jpeg"]

subpackages = find_packages(include=[pattern for name in SHIPPED for pattern in (name, f"{name}.*")])

setup(
    packages=[ROOT, *(f"{ROOT}.{name}" for name in subpackages)],
    # The root folder is a package, so the sources' manifest would be taken for its data.
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
