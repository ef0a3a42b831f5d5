"""One clear message where torch and torchvision do not fit together, instead of an error from deep inside."""

import importlib
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "torchvision", "timm")
# torchvision comes first: timm imports it, and would otherwise get the blame.
_IMPORTS = ("torchvision", "timm")


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def check_torchvision() -> None:
    """Import torchvision and timm, or say in one message what is installed and how to mend it.

    The usual cause is a CPU-only torch beside a torchvision that was built for CUDA (or for another torch).
    Importing torchvision then fails with `operator torchvision::nms does not exist`, from inside timm or
    transformers. Call this before either of them is imported.

    Raises:
        ImportError: if torchvision or timm is missing or cannot be imported. The message gives the cause, the
            installed versions of torch, torchvision and timm, and the command that repairs them.
    """
    for name in _IMPORTS:
        try:
            importlib.import_module(name)
        # A mismatched build fails in many ways: RuntimeError (operator missing), OSError (undefined symbol).
        except Exception as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            installed = ", ".join(_installed(package) for package in _PACKAGES)
            fix = "pip install --force-reinstall torch torchvision" + (" timm" if name == "timm" else "")
            raise ImportError(
                f"drmm_hf cannot import {name}: {cause}. Installed: {installed}. Install torch and "
                f"torchvision from the same index (both CPU builds or both CUDA builds): {fix}",
                name=name,
            ) from None
