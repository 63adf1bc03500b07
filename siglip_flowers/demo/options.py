"""What the page to try a classifier serves, and where."""

from dataclasses import dataclass, field

from siglip_flowers.base.errors import InputError
from siglip_flowers.config.checks import check_choice, check_positive, check_range
from siglip_flowers.config.precision import DTYPES


@dataclass
class DemoArguments:
    """The model of the page, and where the page is served."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "A model directory (results/my-run/model, or the run's directory) or a Hub "
            "id; left out, the newest model under results/."
        },
    )
    host: str = field(
        default="127.0.0.1",
        metadata={
            "help": "Address to serve on; 127.0.0.1 is this machine alone, 0.0.0.0 lets everybody "
            "in who reaches it."
        },
    )
    port: int = field(default=7860, metadata={"help": "Port to serve on."})
    top_k: int = field(default=5, metadata={"help": "Classes named for an image."})
    neighbors: int = field(
        default=6,
        metadata={
            "help": "Nearest training images shown; 0 shows none and needs no data. The data are "
            "those that the model was trained on, or that the data options name."
        },
    )
    max_megapixels: float = field(
        default=80.0,
        metadata={"help": "Larger images are refused, before they are decoded."},
    )
    max_megabytes: int = field(
        default=64, metadata={"help": "Larger files are refused while they are uploaded."}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Number format of the encoder: auto (bfloat16 where the device computes it "
            "natively, else float32), float32, bfloat16, or float16 on CUDA."
        },
    )

    def __post_init__(self) -> None:
        check_range("port", self.port, 1, 65535)
        check_positive("top_k", self.top_k)
        # Pillow refuses 179 by itself.
        check_range("max_megapixels", self.max_megapixels, 0.01, 170)
        check_positive("max_megabytes", self.max_megabytes)
        check_choice("dtype", self.dtype, DTYPES)
        if self.neighbors < 0:
            raise InputError(f"--neighbors is {self.neighbors}; it must be at least 0.")
        if not self.host.strip():
            raise InputError("--host is empty; give an address such as 127.0.0.1.")
