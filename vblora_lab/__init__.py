"""vblora_lab: understand, tune and use VB-LoRA (arXiv 2405.15179), natively in Hugging Face PEFT.

The public names are in ``__init__.pyi``, each with the module that it lives in. They are imported
when they are first used, so that ``import vblora_lab`` is quick, and what needs only the core
never loads matplotlib, ipywidgets or the Trainer.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
