"""What other libraries log on import, at the level that it has for those who use this package."""

import logging

BITSANDBYTES_ON_CPU = "bitsandbytes.backends.cpu.ops"
MISSING_KERNEL = "Failed to load CPU gemm_4bit_forward"


class AsInformation(logging.Filter):
    """Lowers a known warning to INFO, so that it shows only where such messages are asked for."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(self.beginning):
            return True
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return logging.getLogger(record.name).isEnabledFor(logging.INFO)


def lower_known_warnings() -> None:
    """Keeps the terminal and notebooks free of a warning about what nobody asked for.

    PEFT imports bitsandbytes wherever that is installed, for float models too. On a CPU with
    bfloat16 instructions, bitsandbytes then warns that an optional kernel for 4-bit weights is
    missing; it has no switch for that, and works without the kernel. Its other messages stay.
    """
    logging.getLogger(BITSANDBYTES_ON_CPU).addFilter(AsInformation(MISSING_KERNEL))
