"""The aspect ratios that the API offers."""

from enum import StrEnum

__all__ = ["AspectRatio"]


class AspectRatio(StrEnum):
    """The ten aspect ratios of the product reference, width to height."""

    SQUARE = "1:1"
    PORTRAIT_2_3 = "2:3"
    LANDSCAPE_3_2 = "3:2"
    PORTRAIT_3_4 = "3:4"
    LANDSCAPE_4_3 = "4:3"
    PORTRAIT_4_5 = "4:5"
    LANDSCAPE_5_4 = "5:4"
    PORTRAIT_9_16 = "9:16"
    LANDSCAPE_16_9 = "16:9"
    ULTRA_WIDE_21_9 = "21:9"

    @property
    def width_over_height(self) -> float:
        """The ratio as a number: 1.78 for 16:9."""
        width, height = self.value.split(":")
        return int(width) / int(height)
