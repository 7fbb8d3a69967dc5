"""What there is to say of the images that a family draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar


class Drawing:
    """Guidance, steps and further arguments of a family's pipeline."""

    guided: ClassVar[bool] = True
    """Whether images are drawn with classifier-free guidance: two forwards a step, and a negative prompt."""
    usual_guidance: ClassVar[float] = 7.5
    """Guidance of images where none is asked for."""
    guidance_name: ClassVar[str] = "guidance_scale"
    """What the pipeline calls its guidance."""
    guidance_offset: ClassVar[float] = 0.0
    """What the pipeline's number for guidance is less than ours, of which 1 is none."""
    led_away_from: ClassVar[str] = ""
    """The negative prompt where none is asked for, if the pipeline does not guide without one."""
    drawn_with: ClassVar[str] = ""
    """The option by which a model that draws from photos can draw from prompts."""

    if TYPE_CHECKING:

        @property
        def side_multiple(self) -> int: ...

    @property
    def drawn_multiple(self) -> int:
        """Pixels that both sides of a drawn image must be a multiple of. Errors: as `Family.stride`."""
        return self.side_multiple

    @property
    def before(self) -> Any:
        """The model whose images this one goes on with, where one is given: what the option `drawn_with` made."""
        return getattr(self, self.drawn_with) if self.drawn_with else None

    @property
    def draws_from_photos(self) -> bool:
        """Whether images are made of photos, not of prompts alone."""
        return bool(self.drawn_with) and self.before is None

    def call_options(self) -> dict[str, Any]:
        """Arguments of every call of the pipeline that are this family's own; they are part of a recipe."""
        return {}

    def step_faults(self, steps: int) -> list[str]:
        """Why images cannot be drawn in so many sampler steps."""
        return []
